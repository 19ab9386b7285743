//! The cluster service in process, over the whole router, against a real database.

mod agents;
mod authorizations;
mod ending;
mod giving_up;
mod nodes;
mod operators;
mod plaintext;
mod simulation;
mod stream;
mod world;
