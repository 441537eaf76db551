//! A plain file as memory, on the filesystems of this host and, as root, on small ones of the test's own.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use pageless::{Backing, FRAME_BYTES, Identity, Pfn, PfnRange, Pool};
use pageless_host::{FileMemory, HostBacking, HostError, MapError, PageSize, keeper};

use crate::filesystems::{folders, with_mount};
use crate::{Guest, byte_at, is_zero, map, map_all, owner, part, unique_base, write_all};
use pageless_hugepages::{Borrowed, HUGE_2M};

const MIB: u64 = 1 << 20;

fn memory(path: &Path, bytes: u64) -> FileMemory {
    FileMemory::at(path).base(unique_base()).bytes(bytes).build().unwrap()
}

/// An owner, his conversion, his end, and the next one's zeroes.
fn lives(memory: &FileMemory) {
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let frames = memory.frames();
    let guest = owner(&pool, memory);
    assert!(is_zero(&guest));
    write_all(&guest);
    let half = memory.frames().bytes() / 2;
    guest.ram.share(half..2 * half).unwrap();
    map(&guest, frames).unwrap();
    assert_eq!([0, half - 1, half, 2 * half - 1].map(|at| byte_at(&guest, at)), [7, 7, 0, 0]);
    write_all(&guest);
    let committed = memory.capacity().committed;
    guest.ram.unshare(half..2 * half).unwrap();
    guest.ram.share(half..2 * half).unwrap();
    assert_eq!(memory.capacity().committed, committed, "what is zeroed for sharing keeps its space");
    drop(guest);
    assert_eq!(pool.reclaim().freed.runs(), [frames]);
    assert!(is_zero(&owner(&pool, memory)));
}

#[test]
fn the_next_owner_reads_zeroes_on_every_filesystem_here() {
    for folder in folders() {
        let memory = memory(&folder.path().join("memory"), 4 * MIB);
        assert_eq!((memory.identity(), memory.page(), memory.frames().bytes()), (Identity::Synthetic, PageSize::Base4K, 4 * MIB));
        assert_eq!(memory.granule(memory.frames().start()).frames(), 1);
        lives(&memory);
    }
}

#[test]
fn a_filesystem_that_can_neither_punch_nor_reserve_gets_zeroes_written() {
    with_mount("file on ramfs", "ramfs", "mode=0700", |folder| {
        let memory = memory(&folder.join("memory"), 4 * MIB);
        lives(&memory);
        assert_eq!(memory.proof().granule_frames, 1);
    });
}

#[test]
fn a_file_on_hugetlbfs_has_its_pages_and_granules() {
    let Some(_pages) = Borrowed::or_skip("file on hugetlbfs 2M", HUGE_2M, 4) else { return };
    with_mount("file on hugetlbfs 2M", "hugetlbfs", "pagesize=2M,size=8M", |folder| {
        let path = folder.join("memory");
        let unaligned = FileMemory::at(&path).bytes(MIB).build().unwrap_err();
        assert!(matches!(unaligned, HostError::Unaligned { what: "bytes", unit: 0x20_0000, .. }), "{unaligned}");
        let memory = memory(&path, 8 * MIB);
        assert_eq!(
            (memory.page(), memory.granule(memory.frames().start().add(700))),
            (PageSize::Huge2M, part(&memory, 512, 512))
        );
        lives(&memory);
        drop(memory);
        // Opened again it may hold anything, and the filesystem does not tell its holes.
        File::options().write(true).open(&path).unwrap().set_len(10 * MIB).unwrap();
        let memory = FileMemory::at(&path).base(unique_base()).build().unwrap();
        let short = memory.commit(memory.frames()).unwrap_err();
        assert!(short.reason.contains("free"), "the mount is full: {short}");
        assert_eq!(memory.capacity().committed, Some(8 * MIB));
    });
}

#[test]
fn what_a_file_held_before_is_zeroed_and_its_holes_are_left_alone() {
    for folder in folders() {
        let path = folder.path().join("memory");
        let file = File::create(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(b"secret", MIB + 5).unwrap();
        drop(file);
        let memory = FileMemory::at(&path).base(unique_base()).build().unwrap();
        assert_eq!((memory.frames().bytes(), memory.zeroed()), (4 * MIB, 0));
        let guest = map_all(&memory);
        assert!(is_zero(&guest));
        assert_eq!(memory.zeroed(), 1, "one frame held something");
    }
}

#[test]
fn a_full_filesystem_is_a_shortage_at_the_commit_and_never_a_fault() {
    with_mount("file on a full tmpfs", "tmpfs", "size=4M", |folder| {
        let memory = memory(&folder.join("memory"), 8 * MIB);
        let capacity = memory.capacity();
        assert_eq!((capacity.bytes, capacity.committed, capacity.available), (8 * MIB, Some(0), 4 * MIB));
        memory.commit(part(&memory, 0, 512)).unwrap();
        let short = memory.commit(part(&memory, 512, 1024)).unwrap_err();
        assert!(short.reason.contains("bytes free for this user"), "{short}");
        assert_eq!(memory.capacity().committed, Some(2 * MIB));
        // A frame that has no space cannot be mapped either.
        let guest = Guest::uncommitted(&memory);
        map(&guest, part(&memory, 0, 1024)).unwrap();
        assert!(matches!(map(&guest, part(&memory, 1024, 1)), Err(MapError::Vanished(_))));
        guest.write(0, &vec![7; 4 << 20]).unwrap();
    });
}

#[test]
fn space_that_others_take_away_is_an_error_at_the_next_mapping() {
    for folder in folders() {
        let path = folder.path().join("memory");
        let memory = memory(&path, MIB);
        let guest = Guest::of(&memory, [(0, memory.frames())]);
        let other = File::options().write(true).open(&path).unwrap();
        other.set_len(4096).unwrap();
        map(&guest, memory.frames()).unwrap();
        write_all(&guest); // the length came back with the space
        assert_eq!(other.metadata().unwrap().len(), MIB);
    }
}

#[test]
fn a_file_that_others_cut_where_space_cannot_be_asked_for_is_an_error_and_keeps_what_it_holds() {
    with_mount("file cut on ramfs", "ramfs", "mode=0700", |folder| {
        let path = folder.join("memory");
        let memory = memory(&path, MIB);
        let guest = map_all(&memory);
        write_all(&guest);
        guest.unmap(part(&memory, 0, 2)).unwrap();
        map(&guest, part(&memory, 0, 2)).unwrap();
        assert_eq!(byte_at(&guest, 0), 7, "mapping it again changes nothing");
        guest.unmap(memory.frames()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let vanished = map(&guest, memory.frames()).unwrap_err();
        assert!(matches!(&vanished, MapError::Vanished(short) if short.reason.contains("cut to 4096 bytes")), "{vanished:?}");
    });
}

#[test]
fn a_second_memory_on_the_same_file_is_refused_by_name() {
    for folder in folders() {
        let path = folder.path().join("memory");
        let first = memory(&path, MIB);
        let again = FileMemory::at(&path).build().unwrap_err();
        assert_eq!(again, HostError::FileInUse { path: path.clone() });
        // Under another name, and through a descriptor.
        let link = folder.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        assert!(matches!(FileMemory::at(&link).build(), Err(HostError::FileInUse { .. })));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(matches!(FileMemory::on(file.try_clone().unwrap()).build(), Err(HostError::FileInUse { .. })));
        let second = first.clone();
        drop(first);
        assert!(FileMemory::at(&path).build().is_err(), "a clone is the same memory");
        drop(second);
        let by_descriptor = FileMemory::on(file.try_clone().unwrap()).build().unwrap();
        // Two memories made of one descriptor are two as well.
        assert!(matches!(FileMemory::on(file).build(), Err(HostError::FileInUse { .. })));
        drop(by_descriptor);
    }
}

#[test]
fn a_file_is_the_same_memory_under_every_path_and_a_new_one_is_not() {
    for folder in folders() {
        let (path, moved) = (folder.path().join("memory"), folder.path().join("moved"));
        let name = |path: &Path| memory(path, MIB).instance().unwrap().into_owned();
        let first = name(&path);
        fs::rename(&path, &moved).unwrap();
        assert_eq!(name(&moved), first);
        fs::remove_file(&moved).unwrap();
        let mut names = (0..8).map(|_| {
            let name = name(&path);
            fs::remove_file(&path).unwrap();
            name
        });
        assert!(names.all(|name| name != first), "also where the inode's number comes back");
    }
}

#[test]
fn a_withdrawn_range_is_neither_punched_nor_zeroed_and_a_nameless_file_stays_open() {
    let folder = &folders()[0];
    let path = folder.path().join("memory");
    let memory = memory(&path, MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let guest = owner(&pool, &memory);
    write_all(&guest);
    let marked = part(&memory, 9, 1);
    memory.keep_shut(marked);
    assert_eq!((memory.withdrawn().runs(), memory.capacity().withdrawn), (&[marked][..], FRAME_BYTES));
    drop(guest);
    let pass = pool.reclaim();
    assert_eq!(pass.lost[0].frames().start(), marked.start());
    let byte = |frame: u64| {
        let mut byte = [0xee];
        File::open(&path).unwrap().read_exact_at(&mut byte, frame * FRAME_BYTES).unwrap();
        byte[0]
    };
    assert_eq!([8, 9].map(byte), [0, 7], "what lies before the mark is done, and the mark is not touched");
    fs::remove_file(&path).unwrap();
    let held = keeper::held();
    drop((pool, memory));
    assert_eq!(keeper::held(), held + 1, "its descriptor is all that keeps it");
}

#[test]
fn wrong_files_are_named() {
    let folder = &folders()[0];
    let path = folder.path().join("memory");
    let at = |path: &Path| FileMemory::at(path).build().unwrap_err();
    assert_eq!(at(&path), HostError::NoSuchFile { path: path.clone() });
    for no_file in [folder.path(), Path::new("/dev/null")] {
        assert_eq!(at(no_file), HostError::NotAFile { path: no_file.to_owned() });
    }
    let nowhere = Path::new("/dev/null/memory");
    let not_opened = FileMemory::at(nowhere).bytes(MIB).build().unwrap_err();
    assert_eq!(not_opened, HostError::NotOpened { path: nowhere.to_owned(), errno: Errno::ENOTDIR });
    assert!(not_opened.to_string().contains("/dev/null/memory"), "{not_opened}");
    File::create(&path).unwrap();
    assert_eq!(at(&path), HostError::Empty);
    File::create(&path).unwrap().set_len(4097).unwrap();
    assert!(matches!(at(&path), HostError::Unaligned { what: "bytes", value: 4097, .. }));
    let beyond = FileMemory::at(&path).bytes(4096).base(Pfn::LIMIT).build().unwrap_err();
    assert!(matches!(beyond, HostError::Frames(_)), "{beyond}");
    let read_only = FileMemory::on(File::open(&path).unwrap()).build().unwrap_err();
    assert_eq!(read_only, HostError::NotReadWrite { path: path.clone() });
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(matches!(FileMemory::on(reader).build(), Err(HostError::NotAFile { .. })));
}

#[test]
fn a_file_that_a_mapping_still_translates_is_not_proven() {
    let folder = &folders()[0];
    let memory = memory(&folder.path().join("memory"), MIB);
    let pool = Pool::builder().backing(memory.clone()).build().unwrap();
    let guest = owner(&pool, &memory);
    let forgotten = pageless_host::HostMapping::of(&memory, &guest.ram).unwrap();
    let guard = guest.ram.map_guard("host", 0..MIB).unwrap();
    forgotten.map(&guard, part(&memory, 3, 1)).unwrap();
    drop(guard);
    drop(guest);
    let lost: Vec<PfnRange> = pool.reclaim().lost.iter().map(pageless::Lost::frames).collect();
    assert!(lost.iter().any(|run| run.contains(part(&memory, 3, 1).start())), "{lost:?}");
    drop(forgotten);
    lost.iter().for_each(|run| assert!(!pool.retry(*run).freed.is_empty()));
    assert_eq!(pool.stats().free, 256);
}

#[test]
fn the_frames_of_a_descriptor_lie_at_their_offsets() {
    let folder = &folders()[0];
    let file = tempfile::tempfile_in(folder.path()).unwrap();
    let memory = FileMemory::on(file.try_clone().unwrap()).bytes(MIB).build().unwrap();
    let guest = map_all(&memory);
    guest.write(3 * FRAME_BYTES, b"here").unwrap();
    let handle = memory.segment(Pfn::new(3)).unwrap();
    assert_eq!((handle.offset(), handle.frames()), (3 * FRAME_BYTES, part(&memory, 3, 253)));
    assert_ne!(handle.fd().as_raw_fd(), file.as_raw_fd(), "an opening of its own");
    let mut found = [0; 4];
    file.read_exact_at(&mut found, 3 * FRAME_BYTES).unwrap();
    assert_eq!(&found, b"here");
}
