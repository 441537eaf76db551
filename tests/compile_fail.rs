//! What must not compile: a mistake that the type system catches needs no check at run time.
//!
//! The expected messages stand beside the cases; after a change of compiler, `TRYBUILD=overwrite` writes them anew, and the
//! error codes in them are what to look at.

#[test]
fn a_misuse_of_frames_does_not_compile() {
    trybuild::TestCases::new().compile_fail("compile_fail/*.rs");
}
