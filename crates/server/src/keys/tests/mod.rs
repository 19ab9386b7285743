//! Every endpoint of the key service, in process: what works, and what is refused and how.

mod access;
mod clock;
mod dual;
mod import;
mod keys;
mod lists;
mod material;
mod policies;
mod registrations;
mod repeats;
mod ring_roles;
mod rings;
mod states;
mod users;

use crate::app::Settings;
use crate::testing::{Answer, START, World, envelope};
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_domain::access::{Scope, ServiceRole};
use claviger_domain::id::{InstanceId, KeyId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_store::StoreError;
use claviger_store::events::{self, EventKind};
use claviger_store::iam::Grant;
use serde_json::{Value, json};
use std::time::Duration;
