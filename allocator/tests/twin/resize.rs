//! Leaves: plan, demote and promote, done to both.

use std::ops::Range;
use std::sync::Arc;

use pageless::metadata::model::{Begun, Ended, Oracle, Prepared};
use pageless::{Allocation, HolderId, Intent, Order, Pfn, PfnRange};

use super::action::{Trouble, Where};
use super::compare::{same_refusal, same_result};
use super::perform::{caught, script};
use super::script::{Script, lock};
use super::{World, bytes};

/// `plan` foresees what the model would answer, and changes nothing.
pub(crate) fn same_plan(world: &Arc<World>, handle: &Allocation, range: &Range<u64>, intent: Intent) {
    let plan = handle.plan(range.clone(), intent).unwrap();
    let model = lock(&world.model);
    let cuts = model.would_cut(handle.id(), range).unwrap();
    let begun = model.plan(handle.id(), range, intent);
    match (&plan.blocked, &begun) {
        (None, Ok(begun)) => assert_eq!(plan.already_so, matches!(begun, Begun::AlreadySo), "{plan:?}"),
        (Some(blocked), Err(refused)) => same_refusal(blocked, refused),
        _ => panic!("{plan:?} foresees another answer than {begun:?}"),
    }
    let cut = if matches!(begun, Ok(Begun::AlreadySo)) { (vec![], vec![]) } else { (cuts.gibs, cuts.blocks) };
    assert_eq!((plan.demotes_1g, plan.demotes_2m), cut);
    let frames: Vec<Pfn> = handle.frames(range.clone()).unwrap().into_iter().flat_map(|run| run.iter()).collect();
    let mut holders: Vec<(Pfn, HolderId)> = Vec::new();
    for (holder, held) in plan.holders {
        holders.extend(held.iter().map(|pfn| (pfn, holder.clone())));
    }
    let mine = |pfn: &&Pfn| model.frame(**pfn).is_some_and(|frame| frame.tenant == Some(handle.id()));
    let expected = frames.iter().filter(mine).flat_map(|pfn| model.holders(*pfn).into_iter().map(|holder| (*pfn, holder)));
    let mut expected: Vec<(Pfn, HolderId)> = expected.collect();
    holders.sort();
    expected.sort();
    assert_eq!(holders, expected);
}

pub(crate) fn demote(world: &Arc<World>, at: Where, to: Order, trouble: &Trouble) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let offset = bytes(&handle, at).start + u64::from(at.frames) % 4096;
    let frames = lock(&world.model).demotes(handle.id(), offset, to);
    let script = Script { faults: Default::default(), ..script(trouble, &frames) };
    let begun = lock(&world.model).begin_demote(handle.id(), offset, to);
    let before = world.stage.enter(&script, None);
    let answer = caught(|| handle.demote(offset, to));
    world.stage.leave(before);
    let operation = match begun {
        Ok(operation) => operation,
        Err(refused) => return same_result(answer.unwrap(), Err(refused)),
    };
    let ended = lock(&world.model).end(&operation, &script);
    match (answer, ended) {
        (None, Ended::Panicked) => {}
        (Some(Ok(())), Ended::Parted { .. }) => lock(&world.model).demoted(handle.id(), &frames),
        (Some(Err(blocked)), Ended::Refused(why)) => same_refusal(&blocked, &why),
        (answer, ended) => panic!("the pool says {answer:?}, the model {ended:?}"),
    }
}

pub(crate) fn promote(world: &Arc<World>, at: Where, order: Order, trouble: &Trouble) {
    let Some(handle) = world.handle(at.allocation) else { return };
    let offset = bytes(&handle, at).start;
    let script = Script { faults: Default::default(), ..script(trouble, &[]) };
    let begun = lock(&world.model).begin_promote(handle.id(), offset, order);
    let before = world.stage.enter(&script, None);
    let answer = caught(|| handle.promote(offset, order));
    world.stage.leave(before);
    let (operation, block): (_, PfnRange) = match begun {
        Ok(begun) => begun,
        Err(refused) => return same_result(answer.unwrap(), Err(refused)),
    };
    let ended = lock(&world.model).end(&operation, &script);
    match (answer, ended) {
        (None, Ended::Panicked) => {}
        (Some(Ok(())), Ended::Parted { .. }) => {
            assert!((0..3).all(|slot| script.prepare(slot) == Prepared::Ready) || handle.mappings().len() < 3);
            lock(&world.model).promoted(block);
            world.tell("promoted");
        }
        (Some(Err(blocked)), Ended::Refused(why)) => same_refusal(&blocked, &why),
        (answer, ended) => panic!("the pool says {answer:?}, the model {ended:?}"),
    }
}
