//! Requests that are no call of an SDK that we have: the answer to CloudFormation, the function itself once more, and the
//! versions of a layer. They go through the SDK's own HTTP client. The SDK of Lambda is left out for its size.

use crate::{Cloud, env};
use aws_sdk_ec2::config::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use mirror::error::{ApiError, ErrorClass};
use mirror::layer::Page;
use mirror::ports::{Again, Callback, Layers};
use std::time::{Duration, SystemTime};

/// A request may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Callback for Cloud {
    async fn put(&self, url: &str, body: String) -> Result<(), String> {
        // No content type: the signature in a presigned URL covers its absence.
        let status = self.send(request("PUT", url, body, &[])?).await?.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("answered with status {}", status.as_u16()))
        }
    }
}

impl Again for Cloud {
    async fn invoke_self(&self, event: String) -> Result<(), String> {
        let function =
            env("AWS_LAMBDA_FUNCTION_NAME").ok_or("AWS_LAMBDA_FUNCTION_NAME is not set")?;
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let headers = [
            ("x-amz-invocation-type", "Event"),
            ("content-type", "application/json"),
        ];
        let answer = self.lambda("POST", &path, &headers, event).await?;
        answer.map(|_| ()).map_err(|e| e.to_string())
    }
}

impl Layers for Cloud {
    async fn layer_versions(&self, layer: &str) -> Result<Vec<u64>, ApiError> {
        let mut versions = Vec::new();
        let mut path = format!("/2018-10-31/layers/{layer}/versions?MaxItems=50");
        loop {
            let page = match self.call_lambda("GET", &path).await {
                Ok(body) => Page::parse(&body)?,
                Err(e) if e.class == ErrorClass::Gone => return Ok(Vec::new()),
                Err(e) => return Err(e),
            };
            versions.extend(page.versions());
            let Some(marker) = page.next() else {
                return Ok(versions);
            };
            path = format!(
                "/2018-10-31/layers/{layer}/versions?Marker={}&MaxItems=50",
                escaped(marker)
            );
        }
    }

    async fn delete_layer_version(&self, layer: &str, version: u64) -> Result<(), ApiError> {
        let path = format!("/2018-10-31/layers/{layer}/versions/{version}");
        self.call_lambda("DELETE", &path).await.map(|_| ())
    }
}

impl Cloud {
    async fn call_lambda(&self, method: &str, path: &str) -> Result<Vec<u8>, ApiError> {
        self.lambda(method, path, &[], String::new())
            .await
            .unwrap_or_else(|e| Err(ApiError::unanswered(e)))
    }

    /// A signed call of the Lambda API; `path` with its query. The outer error: none could be made, or no answer came.
    async fn lambda(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Result<Vec<u8>, ApiError>, String> {
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
        let url = format!("{}{path}", endpoint.trim_end_matches('/'));
        let signed = self
            .signed(method, &url, &region, headers, body.as_bytes())
            .await?;
        let mut all = headers.to_vec();
        all.extend(signed.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let answer = self.send(request(method, &url, body, &all)?).await?;
        let status = answer.status();
        // "ResourceNotFoundException:http://internal.amazon.com/..." (Smithy, AWS restJson1).
        let code = answer
            .headers()
            .get("x-amzn-errortype")
            .and_then(|text| text.split([':', '#']).next())
            .unwrap_or("Unknown")
            .to_owned();
        let body = ByteStream::new(answer.into_body())
            .collect()
            .await
            .map_err(|e| format!("the answer broke off: {e}"))?
            .to_vec();
        Ok(if status.is_success() {
            Ok(body)
        } else {
            let said = String::from_utf8_lossy(&body);
            Err(ApiError::answered(status.as_u16(), &code, &said))
        })
    }

    /// The headers that sign a request to Lambda.
    async fn signed(
        &self,
        method: &str,
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
            method,
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

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, String> {
        match tokio::time::timeout(TIMEOUT, self.plain().call(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => {
                Err(aws_smithy_types::error::display::DisplayErrorContext(&e).to_string())
            }
            Err(_) => Err(format!("no answer in {} s", TIMEOUT.as_secs())),
        }
    }
}

/// For a query: everything but RFC 3986's unreserved characters as `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
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
