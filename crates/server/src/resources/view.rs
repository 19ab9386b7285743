//! Instances and groups as clients see them.

use crate::app::App;
use axum::http::Uri;
use claviger_domain::id::UnixMs;
use claviger_store::instances::{Group, Placed};
use claviger_wire::rc::{
    Endpoints, Extensions, LastOperation, PLAN_ID, RESOURCE_ID, ResourceGroup, ResourceInstance,
    SERVICE_INSTANCE,
};
use serde_json::json;
use std::collections::BTreeMap;

fn date(at: UnixMs) -> String {
    jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

fn group_crn(app: &App, id: impl std::fmt::Display) -> String {
    format!("crn:v1:bluemix:public:resource-controller::a/{}::resource-group:{id}", app.account.id)
}

/// Where an instance is reached.
fn extensions(app: &App) -> Extensions {
    let private = app.url(false).to_owned();
    let uri: Uri = private.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(443);
    Extensions {
        endpoints: Endpoints { public: app.url(true).to_owned(), private },
        virtual_private_endpoints: BTreeMap::from([
            ("dns_domain".to_owned(), json!(host)),
            ("dns_hosts".to_owned(), json!([host])),
            ("endpoints".to_owned(), json!([])),
            ("origin_type".to_owned(), json!("service")),
            ("ports".to_owned(), json!([{ "port_min": port, "port_max": port }])),
        ]),
    }
}

/// An instance.
pub(super) fn instance(app: &App, i: &Placed) -> ResourceInstance {
    let crn = app.account.instance_crn(i.id);
    // Those of the first start were made by whoever started the server.
    let by = i.created_by.clone().unwrap_or_else(|| app.account.id.clone());
    ResourceInstance {
        id: crn.clone(),
        guid: i.id.0,
        url: format!("/v2/resource_instances/{}", i.id),
        crn,
        name: i.name.clone(),
        region_id: i.region.clone(),
        account_id: app.account.id.clone(),
        resource_plan_id: PLAN_ID.to_owned(),
        resource_group_id: i.group,
        resource_group_crn: group_crn(app, i.group),
        resource_id: RESOURCE_ID.to_owned(),
        target_crn: format!(
            "crn:v1:bluemix:public:globalcatalog::::deployment:{PLAN_ID}%3A{}",
            i.region
        ),
        state: "active".to_owned(),
        kind: SERVICE_INSTANCE.to_owned(),
        sub_type: "kms".to_owned(),
        allow_cleanup: false,
        locked: false,
        last_operation: LastOperation {
            kind: "create".to_owned(),
            state: "succeeded".to_owned(),
            description: "The instance was made".to_owned(),
        },
        dashboard_url: String::new(),
        created_at: date(i.created),
        created_by: by.clone(),
        updated_at: date(i.created),
        updated_by: by,
        extensions: extensions(app),
    }
}

/// A resource group.
pub(super) fn group(app: &App, g: &Group) -> ResourceGroup {
    ResourceGroup {
        id: g.id,
        crn: group_crn(app, g.id),
        account_id: app.account.id.clone(),
        name: g.name.clone(),
        state: "ACTIVE".to_owned(),
        default: g.id == app.account.resource_group,
        created_at: date(g.created),
        updated_at: date(g.created),
        resource_linkages: Vec::new(),
    }
}
