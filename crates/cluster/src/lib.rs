//! The agent of a control-plane node.
