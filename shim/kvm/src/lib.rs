//! KVM beside pageless.
#![deny(unsafe_code)]
