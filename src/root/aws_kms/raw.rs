//! Any call of AWS KMS, with a body that is passed on as it is.
//!
//! The SDK sends it as a Decrypt whose target and body are replaced before it is signed: so
//! credentials, retries, timeouts, proxies and certificates are those of the root.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use aws_sdk_kms::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, SdkError};
use zeroize::Zeroizing;

use super::super::Error;
use super::super::forward::{Kms, Response};
use super::sent::Sent;
use super::{Root, failure};

#[async_trait]
impl Kms for Root {
    async fn call(&self, operation: &str, body: Zeroizing<Vec<u8>>) -> Result<Response, Error> {
        let target = format!("TrentService.{operation}");
        let seen = Seen::default();
        let sent = Sent::default();
        let call = self.client().await?.decrypt().customize().interceptor(seen.clone());
        let call = call.interceptor(sent.clone());
        let call = call.mutate_request(move |request| {
            let headers = request.headers_mut();
            headers.insert("x-amz-target", target.clone());
            headers.insert("content-length", body.len().to_string());
            *request.body_mut() = body.to_vec().into();
        });
        match call.send().await {
            Ok(_) => {
                let body = seen.0.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(Response { status: 200, body: body.ok_or_else(failure::not_kms)? })
            }
            Err(SdkError::ServiceError(answer)) => {
                let body = answer.raw().body().bytes().unwrap_or_default().to_vec();
                let status = answer.raw().status().as_u16();
                Ok(Response { status, body: Zeroizing::new(body) })
            }
            Err(error) => match self.failed(&error, failure::of_unwrap(&error, &sent.secrets())) {
                Error::Denied(detail) | Error::Wrong(detail) => Err(Error::Away(detail)),
                away => Err(away),
            },
        }
    }
}

/// The body of the last response.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Option<Zeroizing<Vec<u8>>>>>);

impl Intercept for Seen {
    fn name(&self) -> &'static str {
        "response body"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().body().bytes().map(|body| Zeroizing::new(body.to_vec()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = body;
        Ok(())
    }
}
