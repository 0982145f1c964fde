//! What an AWS error code means for us.
//!
//! Source: "Error codes for the Amazon EC2 API", "Traffic mirroring quotas", and codes observed that are not documented.

use std::fmt;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// Throttled, an error of the service, a time-out: again, with back-off.
    Retry,
    /// A quota is used up: report, keep the rest going.
    Quota,
    /// Refused until the interface itself changes.
    Permanent,
    /// What it is about is gone; for a deletion that is success.
    Gone,
    /// A target or filter still has sessions: things are being removed in the wrong order.
    InUse,
    /// The stack or its permissions are wrong: an operator's matter.
    Config,
    /// Not in the table. After a create the answer is to describe again: a doubled session number ends here.
    Unknown,
}

impl ErrorClass {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Quota => "quota",
            Self::Permanent => "permanent",
            Self::Gone => "gone",
            Self::InUse => "in_use",
            Self::Config => "config",
            Self::Unknown => "unknown",
        }
    }

    /// Class of an error code of the EC2, Auto Scaling, Elastic Load Balancing, ECS, CloudFormation or Lambda API.
    pub fn of_code(code: &str) -> Self {
        match code {
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequestsException"
            | "EC2ThrottledException"
            | "InternalError"
            | "InternalFailure"
            | "InternalServerError"
            | "ServiceUnavailable"
            | "Unavailable"
            | "RequestTimeout"
            | "RequestTimeoutException" => Self::Retry,
            "TrafficMirrorSessionLimitExceeded"
            | "TrafficMirrorSourcesPerTargetLimitExceeded"
            | "TrafficMirrorSessionsPerTargetLimitExceeded" => Self::Quota,
            "NetworkInterfaceNotSupported"
            | "TrafficMirrorSessionsPerInterfaceLimitExceeded"
            | "TrafficMirrorSourceInUse" => Self::Permanent,
            "InvalidTrafficMirrorSessionNotFound"
            | "InvalidTrafficMirrorSessionId.NotFound"
            | "InvalidNetworkInterfaceID.NotFound"
            | "InvalidNetworkInterfaceId.NotFound"
            | "InvalidInstanceID.NotFound"
            | "TargetGroupNotFound"
            | "ResourceNotFoundException"
            | "InvalidTarget" => Self::Gone,
            "TrafficMirrorTargetInUseException"
            | "TrafficMirrorTargetInUse"
            | "TrafficMirrorFilterInUse" => Self::InUse,
            "UnauthorizedOperation"
            | "AccessDenied"
            | "AccessDeniedException"
            | "AuthFailure"
            | "OptInRequired"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "RequestExpired"
            | "InvalidTrafficMirrorTargetNotFound"
            | "InvalidTrafficMirrorTargetId.NotFound"
            | "InvalidTrafficMirrorFilterNotFound"
            | "InvalidTrafficMirrorFilterId.NotFound" => Self::Config,
            _ => Self::Unknown,
        }
    }
}

/// An error of a call, whatever the service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ApiError {
    /// What to do about it.
    pub class: ErrorClass,
    /// The service's code; empty where no answer came.
    pub code: String,
    /// The service's or the transport's message.
    pub message: String,
}

impl ApiError {
    /// From an answer of the service. `status` is the HTTP status; 429 and 5xx are worth a retry whatever the code.
    pub fn answered(status: u16, code: &str, message: &str) -> Self {
        let class = match ErrorClass::of_code(code) {
            ErrorClass::Unknown if status >= 500 || status == 429 => ErrorClass::Retry,
            class => class,
        };
        Self {
            class,
            code: code.to_owned(),
            message: message.to_owned(),
        }
    }

    /// Whether an interface is refused for what it is, and will be until it changes: not for what others did to it.
    pub fn is_for_what_it_is(&self) -> bool {
        self.class == ErrorClass::Permanent
            && self.code != "TrafficMirrorSessionsPerInterfaceLimitExceeded"
    }

    /// No answer came: connection refused or cut, time-out. The request may have been carried out.
    pub fn unanswered(message: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::Retry,
            code: String::new(),
            message: message.into(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.as_str() {
            "" => f.write_str(&self.message),
            code => write!(f, "{code}: {}", self.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_the_table_has_its_class() {
        let table = [
            ("RequestLimitExceeded", ErrorClass::Retry),
            ("TrafficMirrorSessionLimitExceeded", ErrorClass::Quota),
            (
                "TrafficMirrorSourcesPerTargetLimitExceeded",
                ErrorClass::Quota,
            ),
            (
                "TrafficMirrorSessionsPerTargetLimitExceeded",
                ErrorClass::Quota,
            ),
            ("NetworkInterfaceNotSupported", ErrorClass::Permanent),
            (
                "TrafficMirrorSessionsPerInterfaceLimitExceeded",
                ErrorClass::Permanent,
            ),
            ("InvalidTrafficMirrorSessionNotFound", ErrorClass::Gone),
            ("InvalidTrafficMirrorSessionId.NotFound", ErrorClass::Gone),
            ("InvalidNetworkInterfaceID.NotFound", ErrorClass::Gone),
            ("TrafficMirrorTargetInUseException", ErrorClass::InUse),
            ("TrafficMirrorFilterInUse", ErrorClass::InUse),
            ("UnauthorizedOperation", ErrorClass::Config),
            ("InvalidParameterValue", ErrorClass::Unknown),
        ];
        for (code, class) in table {
            assert_eq!(ErrorClass::of_code(code), class, "{code}");
        }
    }

    #[test]
    fn a_server_error_with_any_code_is_worth_a_retry_and_a_known_code_keeps_its_class() {
        assert_eq!(ApiError::answered(503, "Odd", "").class, ErrorClass::Retry);
        assert_eq!(
            ApiError::answered(400, "Odd", "").class,
            ErrorClass::Unknown
        );
        assert_eq!(
            ApiError::answered(500, "UnauthorizedOperation", "").class,
            ErrorClass::Config
        );
        assert_eq!(ApiError::unanswered("timed out").to_string(), "timed out");
        assert_eq!(ApiError::answered(400, "Odd", "no").to_string(), "Odd: no");
    }
}
