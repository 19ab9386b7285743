//! Instances of the key service and their groups, as IBM's Resource Controller and Resource
//! Manager show them to clients.

mod groups;
mod instances;
mod view;

use crate::http::api::content::json;
use crate::http::api::parameters::{GROUPS, INSTANCES};
use crate::http::api::{Api, Kind, delete, get, patch, post, says};
use claviger_wire::rc::{
    NewResourceInstance, ResourceGroup, ResourceGroups, ResourceInstance, ResourceInstanceChange,
    ResourceInstances,
};

/// Paths of the Resource Controller.
pub(crate) fn api() -> Api {
    Api::new("instances", Kind::Resource)
        .at(
            "/v2/resource_instances",
            [
                get(
                    instances::list,
                    says("listResourceInstances", "Instances of the key service")
                        .query(&INSTANCES)
                        .answers(200, json::<ResourceInstances>())
                        .refuses(&[400]),
                ),
                post(
                    instances::create,
                    says("createResourceInstance", "Make an instance")
                        .takes(json::<NewResourceInstance>())
                        .answers(201, json::<ResourceInstance>())
                        .refuses(&[409]),
                ),
            ],
        )
        // A CRN has a slash, which some clients encode and others do not: the wildcard takes both.
        .at(
            "/v2/resource_instances/{*resource_instance}",
            [
                get(
                    instances::get,
                    says("getResourceInstance", "An instance")
                        .answers(200, json::<ResourceInstance>())
                        .refuses(&[404]),
                ),
                patch(
                    instances::change,
                    says("updateResourceInstance", "Give an instance another name")
                        .takes(json::<ResourceInstanceChange>())
                        .answers(200, json::<ResourceInstance>())
                        .refuses(&[404, 409]),
                ),
                delete(
                    instances::delete,
                    says("deleteResourceInstance", "Remove an instance that nothing uses, with its deleted keys: they cannot be restored any longer")
                        .answers_nothing(204)
                        .refuses(&[404, 422]),
                ),
            ],
        )
        .at(
            "/v2/resource_groups",
            [get(
                groups::list,
                says("listResourceGroups", "Resource groups")
                    .query(&GROUPS)
                    .answers(200, json::<ResourceGroups>()),
            )],
        )
        .at(
            "/v2/resource_groups/{group}",
            [get(
                groups::get,
                says("getResourceGroup", "A resource group")
                    .answers(200, json::<ResourceGroup>())
                    .refuses(&[404]),
            )],
        )
}

#[cfg(test)]
mod tests;
