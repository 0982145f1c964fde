//! The SDK's errors as `mirror` knows them.

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::display::DisplayErrorContext;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use mirror::error::ApiError;

/// An answer of the service keeps its code and message; everything else is no answer.
pub(crate) fn api_error<E>(error: &SdkError<E, HttpResponse>) -> ApiError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (
                answer.err().code().unwrap_or("Unknown"),
                answer.err().message().unwrap_or(""),
            );
            ApiError::answered(answer.raw().status().as_u16(), code, message)
        }
        _ => ApiError::unanswered(DisplayErrorContext(error).to_string()),
    }
}
