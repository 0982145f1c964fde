//! Changes to sessions, one call each.

use crate::Cloud;
use crate::describe::STACK_TAG;
use crate::errors::api_error;
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use mirror::error::ApiError;
use mirror::id::{SessionId, SessionNumber};
use mirror::plan::SessionSpec;
use mirror::ports::{NewSession, Sessions};
use std::hash::{BuildHasher, RandomState};

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// VNIs have 24 bits.
fn vni(spec: &SessionSpec) -> i32 {
    i32::try_from(spec.vni).unwrap_or(i32::MAX)
}

impl Sessions for Cloud {
    async fn create(&self, new: NewSession<'_>) -> Result<SessionId, ApiError> {
        let name = format!("{} {}", new.stack.name(), new.eni);
        // In the creating call: there is never a session of ours that does not say so.
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::TrafficMirrorSession)
            .tags(tag(STACK_TAG, new.stack.as_str()))
            .tags(tag("Name", &name))
            .build();
        let call = self
            .writer
            .create_traffic_mirror_session()
            .network_interface_id(new.eni.as_str())
            .traffic_mirror_target_id(new.spec.target.as_str())
            .traffic_mirror_filter_id(new.spec.filter.as_str())
            .packet_length(i32::from(new.spec.packet_length))
            .virtual_network_id(vni(new.spec))
            .session_number(i32::from(new.number.get()))
            .tag_specifications(tags)
            .client_token(new.token);
        let answer = call.send().await.map_err(|e| api_error(&e))?;
        let id = answer
            .traffic_mirror_session()
            .and_then(|s| s.traffic_mirror_session_id());
        // Made, but not said which: as good as unanswered, and the same token gives the same session.
        id.map(SessionId::new)
            .ok_or_else(|| ApiError::unanswered("the answer to the create names no session"))
    }

    async fn modify(
        &self,
        session: &SessionId,
        number: SessionNumber,
        spec: &SessionSpec,
    ) -> Result<(), ApiError> {
        let call = self
            .writer
            .modify_traffic_mirror_session()
            .traffic_mirror_session_id(session.as_str())
            .traffic_mirror_target_id(spec.target.as_str())
            .traffic_mirror_filter_id(spec.filter.as_str())
            .packet_length(i32::from(spec.packet_length))
            .virtual_network_id(vni(spec))
            .session_number(i32::from(number.get()));
        call.send().await.map_err(|e| api_error(&e)).map(|_| ())
    }

    async fn delete(&self, session: &SessionId) -> Result<(), ApiError> {
        let call = self
            .writer
            .delete_traffic_mirror_session()
            .traffic_mirror_session_id(session.as_str());
        call.send().await.map_err(|e| api_error(&e)).map(|_| ())
    }

    fn token(&self) -> String {
        // Each RandomState has keys of its own from the operating system's randomness: 128 bits in all.
        let random = || RandomState::new().hash_one(0u8);
        format!("{:016x}{:016x}", random(), random())
    }
}
