//! The agent of a control-plane node.

pub mod control;
