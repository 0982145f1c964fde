//! Two requests that are no call of an SDK that we have: the answer to CloudFormation, and the function itself once
//! more. Both go through the SDK's own HTTP client.

use crate::{Cloud, env};
use aws_sdk_ec2::config::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use mirror::ports::{Again, Callback};
use std::time::{Duration, SystemTime};

/// A request may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Callback for Cloud {
    async fn put(&self, url: &str, body: String) -> Result<(), String> {
        // No content type: the signature in a presigned URL covers its absence.
        let request = request("PUT", url, body, &[])?;
        self.send(request).await
    }
}

impl Again for Cloud {
    async fn invoke_self(&self, event: String) -> Result<(), String> {
        let function =
            env("AWS_LAMBDA_FUNCTION_NAME").ok_or("AWS_LAMBDA_FUNCTION_NAME is not set")?;
        let region = self
            .reading
            .region()
            .ok_or("AWS_REGION is not set")?
            .to_string();
        let endpoint = env("AWS_ENDPOINT_URL_LAMBDA")
            .or_else(|| self.reading.endpoint_url().map(str::to_owned));
        let endpoint = endpoint.unwrap_or_else(|| {
            let china = if region.starts_with("cn-") { ".cn" } else { "" };
            format!("https://lambda.{region}.amazonaws.com{china}")
        });
        let url = format!(
            "{}/2015-03-31/functions/{function}/invocations",
            endpoint.trim_end_matches('/')
        );
        let asynchronous = ("x-amz-invocation-type", "Event");
        let signed = self
            .signed(&url, &region, &[asynchronous], event.as_bytes())
            .await?;
        let mut headers: Vec<(&str, &str)> =
            vec![asynchronous, ("content-type", "application/json")];
        headers.extend(signed.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        self.send(request("POST", &url, event, &headers)?).await
    }
}

impl Cloud {
    /// The headers that sign a POST to Lambda.
    async fn signed(
        &self,
        url: &str,
        region: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Vec<(String, String)>, String> {
        let text = |e: &dyn std::fmt::Display| format!("the request could not be signed: {e}");
        let provider = self
            .reading
            .credentials_provider()
            .ok_or("there are no credentials")?;
        let identity = provider
            .provide_credentials()
            .await
            .map_err(|e| text(&e))?
            .into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("lambda")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|e| text(&e))?
            .into();
        let signable = SignableRequest::new(
            "POST",
            url,
            headers.iter().copied(),
            SignableBody::Bytes(body),
        )
        .map_err(|e| text(&e))?;
        let (instructions, _) = sign(signable, &params).map_err(|e| text(&e))?.into_parts();
        Ok(instructions
            .headers()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect())
    }

    async fn send(&self, request: HttpRequest) -> Result<(), String> {
        let answer = match tokio::time::timeout(TIMEOUT, self.plain().call(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                return Err(aws_smithy_types::error::display::DisplayErrorContext(&e).to_string());
            }
            Err(_) => return Err(format!("no answer in {} s", TIMEOUT.as_secs())),
        };
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("answered with status {}", status.as_u16()))
        }
    }
}

fn request(
    method: &str,
    url: &str,
    body: String,
    headers: &[(&str, &str)],
) -> Result<HttpRequest, String> {
    let bad = |e: &dyn std::fmt::Display| format!("the URL cannot be used: {e}");
    let mut request = HttpRequest::new(SdkBody::from(body));
    request.set_method(method).map_err(|e| bad(&e))?;
    request.set_uri(url).map_err(|e| bad(&e))?;
    for (key, value) in headers {
        request
            .headers_mut()
            .insert((*key).to_owned(), (*value).to_owned());
    }
    Ok(request)
}
