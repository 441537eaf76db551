//! The pool against its model twin: random verbs that fail in every way and meet each other half-way; after each of them
//! every answer and the whole state must be the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that fails should panic"
)]

mod twin;

use proptest::prelude::*;
use twin::action::{Action, any_action};
use twin::perform::perform;
use twin::{Shape, World};

const GIB: u64 = 1 << 18;

fn run(shape: Shape, actions: &[Action]) {
    let world = World::new(shape);
    actions.iter().for_each(|action| perform(&world, action));
}

/// So many cases, or as many as `PROPTEST_CASES` says; proptest prints the actions of a case that fails, as small as it can.
fn cases(cases: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_tiny_pool_equals_its_model(asks_again: bool, actions in prop::collection::vec(any_action(), 1..40)) {
        run(Shape::new(&[(0, GIB - 11, GIB + 13)], 1, asks_again), &actions);
    }

    #[test]
    fn a_tiny_pool_with_large_granules_equals_its_model(asks_again: bool, actions in prop::collection::vec(any_action(), 1..40)) {
        run(Shape::new(&[(4, GIB - 22, GIB + 23)], 4, asks_again), &actions);
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn two_nodes_across_a_gib_border_equal_their_model(asks_again: bool, actions in prop::collection::vec(any_action(), 1..40)) {
        run(Shape::new(&[(0, GIB - 1100, GIB - 40), (7, GIB - 40, GIB + 600)], 1, asks_again), &actions);
    }

    #[test]
    fn granules_of_sixteen_across_two_nodes_equal_their_model(asks_again: bool, actions in prop::collection::vec(any_action(), 1..40)) {
        run(Shape::new(&[(1, GIB - 70, GIB + 56), (0, GIB + 100, GIB + 690)], 16, asks_again), &actions);
    }
}
