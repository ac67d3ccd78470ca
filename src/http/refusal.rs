//! Every way of saying no before a policy has said yes, and the one table that
//! turns them into HTTP.

use std::{borrow::Cow, num::NonZeroU16};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    audit::Reason,
    auth::{self, AuthError, ExchangeError},
    authz::DenyReason,
    child::StartError,
    config::Config,
    http::{
        Response,
        reply::{self, LastAnswer},
    },
    mcp::{CallError, Era, Id, version},
    session::{Failure, NoSession, NoStream, OpenError, SendError, StateError},
};

/// Why a request was refused: nothing of it has reached a child.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("exactly one valid Host header is required")]
    BadHost,
    #[error("this host name is not served here")]
    HostNotAllowed,
    #[error("this origin is not allowed")]
    OriginNotAllowed,
    #[error("a header is malformed or doubled")]
    Header,
    #[error("the head of the request is too large")]
    HeadTooLarge,
    #[error("the target of the request is too long")]
    TargetTooLong,
    #[error("this expectation is not met here")]
    Expectation,
    #[error("this port speaks TLS: use https")]
    Plaintext,
    /// So many on one connection were ended in the framing of HTTP/2, by the library's own word, before anybody saw them.
    #[error("a request was ended by the framing of HTTP/2")]
    Framing(NonZeroU16),
    #[error("too many connections from this address")]
    TooManyConnections,
    #[error("no such path")]
    NotFound,
    #[error("method not allowed")]
    MethodNotAllowed(&'static str),
    #[error("the body must be application/json, not encoded")]
    ContentType,
    #[error("the client must accept application/json and text/event-stream")]
    NotAcceptable,
    #[error("the body is too large")]
    TooLarge,
    #[error("the body took too long")]
    BodyTimeout,
    #[error("the body is incomplete")]
    BodyIncomplete,
    #[error("{0}")]
    Auth(#[from] AuthError),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("this protocol version is not supported")]
    Version(String, Era),
    /// Header and body of a modern request do not say the same, or one says nothing.
    #[error("header and body differ: {0}")]
    HeaderMismatch(&'static str),
    /// A method that modern MCP does not have, or nobody may call.
    #[error("method not found")]
    NoMethod,
    /// A tool with a name that none has here.
    #[error("wrong parameters: no tool has such a name")]
    NoTool,
    /// A notification that MCP does not have: it goes no further, and its client is told nothing of that. Some take an
    /// error for the end of all, and none is owed (JSON-RPC 2.0 §4.1).
    #[error("an unknown notification")]
    Unheard,
    #[error("not permitted")]
    Denied(DenyReason),
    /// A policy would permit it to a token with these scopes.
    #[error("the token lacks a scope")]
    Scope(Vec<String>),
    #[error("Mcp-Session-Id is required")]
    SessionIdMissing,
    #[error("no such session")]
    NoSession(NoSession),
    /// Nothing goes on from this `Last-Event-ID`.
    #[error("no such event")]
    NoEvent,
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Send(#[from] SendError),
    /// The same of a call in a session, for which there is no room.
    #[error("{0}")]
    NoRoom(SendError),
    /// The server is elsewhere, and there is no token for it.
    #[error("{0}")]
    Exchange(ExchangeError),
    /// thv itself cannot serve; the journal and `thv check` know why.
    #[error("misconfigured")]
    Misconfigured,
    #[error("restarting")]
    Restarting,
    /// There is no memory for its body now.
    #[error("too much is being read at once")]
    Overloaded,
    /// A mistake of thv's own.
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// How many requests it refuses, where that is said of several at once.
    pub fn requests(&self) -> Option<NonZeroU16> {
        match self {
            Self::Framing(requests) => Some(*requests),
            _ => None,
        }
    }

    /// Why, for the record (THV_REASON).
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadHost
            | Self::Header
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::Expectation
            | Self::Plaintext
            | Self::BodyIncomplete => Reason::BadHeader,
            Self::Framing(_) => Reason::Framing,
            Self::TooManyConnections => Reason::ConnectionLimit,
            Self::HostNotAllowed => Reason::HostNotAccepted,
            Self::OriginNotAllowed => Reason::OriginNotAccepted,
            Self::NotFound => Reason::PathUnknown,
            Self::MethodNotAllowed(_) => Reason::HttpMethod,
            Self::ContentType => Reason::MediaType,
            Self::NotAcceptable => Reason::NotAcceptable,
            Self::TooLarge => Reason::BodyTooLarge,
            Self::BodyTimeout => Reason::BodyTimeout,
            Self::Auth(error) => Reason::from(error),
            Self::Call(CallError::NotJson) => Reason::NotJson,
            Self::Call(CallError::Invalid(_)) => Reason::NotJsonRpc,
            Self::Call(CallError::Params(_)) | Self::NoTool => Reason::BadParameters,
            Self::Version(..) => Reason::VersionUnsupported,
            Self::Denied(DenyReason::Policy) => Reason::Policy,
            Self::Denied(DenyReason::PolicyError) => Reason::PolicyError,
            Self::HeaderMismatch(_) => Reason::HeaderMismatch,
            Self::Denied(DenyReason::Method) | Self::NoMethod | Self::Unheard => {
                Reason::MethodUnknown
            }
            Self::NoEvent => Reason::EventUnknown,
            Self::Scope(_) => Reason::ScopeInsufficient,
            Self::SessionIdMissing => Reason::SessionMissing,
            Self::NoSession(NoSession::Unknown) => Reason::SessionUnknown,
            Self::NoSession(NoSession::Mismatch) => Reason::SessionOfAnother,
            Self::Open(error) => match error {
                OpenError::Full => Reason::SessionLimit,
                OpenError::UserFull => Reason::UserSessionLimit,
                OpenError::NoVersion => Reason::ChildProtocol,
                OpenError::Start(
                    StartError::Failed { .. }
                    | StartError::NotListening { .. }
                    | StartError::Deadline,
                ) => Reason::ChildStartFailed,
                OpenError::Start(_) => Reason::RunnerUnavailable,
                OpenError::Failed(failure) => failure.reason(),
                OpenError::Send(error) => sending(*error),
            },
            Self::Send(error) | Self::NoRoom(error) => sending(*error),
            Self::Exchange(ExchangeError::Refused(_)) => Reason::ExchangeRefused,
            Self::Exchange(ExchangeError::Down(_)) => Reason::ProviderUnavailable,
            Self::Misconfigured => Reason::Misconfigured,
            Self::Restarting => Reason::Stopping,
            Self::Overloaded => Reason::Overloaded,
            Self::Internal => Reason::Internal,
        }
    }

    /// No wildcard arm: a new refusal must choose its status here to compile.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadHost
            | Self::Header
            | Self::Plaintext
            | Self::Framing(_)
            | Self::BodyIncomplete
            | Self::Call(_)
            | Self::Version(..)
            | Self::HeaderMismatch(_)
            | Self::NoEvent
            | Self::SessionIdMissing
            | Self::Auth(AuthError::Malformed(_)) => StatusCode::BAD_REQUEST,
            Self::Auth(
                AuthError::Missing
                | AuthError::Rejected(_)
                | AuthError::Proof
                | AuthError::Nonce(_),
            ) => StatusCode::UNAUTHORIZED,
            Self::Unheard => StatusCode::ACCEPTED,
            Self::HostNotAllowed
            | Self::OriginNotAllowed
            | Self::Auth(AuthError::Scope(_))
            | Self::Scope(_)
            | Self::Denied(DenyReason::Policy | DenyReason::PolicyError) => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NoSession(_) | Self::NoMethod => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyConnections => StatusCode::TOO_MANY_REQUESTS,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            // Legacy MCP names no status for it; its SDKs read 200 (tok-125), as is said of any other tool that there is
            // not, and some of them ask nothing more after another one.
            // So do they where there is no room for one call more: another status is the end of all that run.
            Self::Denied(DenyReason::Method) | Self::NoTool | Self::NoRoom(_) => StatusCode::OK,
            Self::Open(OpenError::Full | OpenError::Start(_))
            | Self::Auth(AuthError::IssuerDown { .. })
            | Self::Exchange(ExchangeError::Down(_))
            | Self::Misconfigured
            | Self::Restarting
            | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Open(OpenError::UserFull) => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Open(OpenError::Failed(failure)) => reply::failure_status(*failure),
            Self::Open(OpenError::NoVersion) | Self::Exchange(ExchangeError::Refused(_)) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Open(OpenError::Send(error)) | Self::Send(error) => match error {
                SendError::Gone => StatusCode::NOT_FOUND,
                SendError::Busy | SendError::ServerCalls => StatusCode::SERVICE_UNAVAILABLE,
                SendError::UserCalls => StatusCode::TOO_MANY_REQUESTS,
                SendError::State(StateError::Lost) => reply::failure_status(Failure::ChildEnded),
                SendError::DuplicateId | SendError::NotAsked | SendError::State(_) => {
                    StatusCode::BAD_REQUEST
                }
            },
        }
    }

    /// The answer as JSON-RPC. `id` is the request's, where the body could be read.
    pub fn rpc(&self, id: Option<&Id>) -> Bytes {
        let (code, data) = self.error();
        reply::error(id, code, &self.to_string(), data)
    }

    /// The answer.
    pub fn response(&self, config: Option<&Config>, id: Option<&Id>) -> Response {
        if matches!(self, Self::Unheard) {
            return reply::empty(self.status());
        }
        let mut response = reply::json(self.status(), self.rpc(id));
        let headers = response.headers_mut();
        if let (Some(error), Some(config)) = (self.auth_error(), config)
            && let Some(challenge) = auth::challenge(&error, &config.auth, &config.resource)
        {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Self::Auth(AuthError::Nonce(nonce)) = self
            && let Ok(nonce) = HeaderValue::from_str(nonce)
        {
            headers.insert(DPOP_NONCE, nonce);
        }
        if let Self::MethodNotAllowed(methods) = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if matches!(
            self.status(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after()));
        }
        // What was not read of the request must not become the next one (conn-7).
        if self.leaves_body_unread() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, Self::Misconfigured | Self::TooManyConnections) {
            response.extensions_mut().insert(LastAnswer);
        }
        response
    }

    /// What a challenge answers: the token's fault, or its lack of a scope that a policy wants.
    fn auth_error(&self) -> Option<Cow<'_, AuthError>> {
        match self {
            Self::Auth(error) => Some(Cow::Borrowed(error)),
            Self::Scope(needed) => Some(Cow::Owned(AuthError::Scope(needed.clone()))),
            _ => None,
        }
    }

    /// The JSON-RPC code and data. The word in `data.reason` says no more than the
    /// client may know: whose a session is, and which check a token failed, is for the record.
    fn error(&self) -> (i32, Value) {
        let reason = |word: &str| json!({ "reason": word });
        match self {
            Self::Call(CallError::NotJson) => (-32700, reason("not-json")),
            Self::Call(CallError::Invalid(_)) => (-32600, reason("not-json-rpc")),
            Self::Send(SendError::DuplicateId | SendError::NotAsked) => {
                (-32600, reason(self.reason().as_str()))
            }
            Self::Send(SendError::State(StateError::Lost)) => {
                (reply::INTERNAL_ERROR, reason(self.reason().as_str()))
            }
            // Whose it is instead is for the record.
            Self::Send(SendError::State(StateError::Mismatch)) => {
                (-32602, reason(Reason::StateInvalid.as_str()))
            }
            Self::Send(SendError::State(_)) => (-32602, reason(self.reason().as_str())),
            Self::Call(CallError::Params(_)) | Self::NoTool => (-32602, reason("bad-parameters")),
            Self::Denied(DenyReason::Method) | Self::NoMethod => (-32601, reason("method-unknown")),
            Self::HeaderMismatch(_) => (-32020, reason("header-mismatch")),
            Self::Version(requested, era) => (
                -32022,
                json!({ "supported": version::supported(*era), "requested": requested }),
            ),
            Self::NoSession(_) => (reply::INTERNAL_ERROR, reason("session-unknown")),
            Self::Auth(AuthError::Rejected(_)) => (reply::INTERNAL_ERROR, reason("token-invalid")),
            Self::Denied(_) => (reply::INTERNAL_ERROR, reason("denied")),
            Self::Open(OpenError::Start(_)) => (reply::INTERNAL_ERROR, reason("start-failed")),
            Self::Open(OpenError::Failed(failure)) => {
                (reply::INTERNAL_ERROR, reason(failure.code()))
            }
            _ => (reply::INTERNAL_ERROR, reason(self.reason().as_str())),
        }
    }

    /// Seconds until asking again makes sense.
    fn retry_after(&self) -> u64 {
        match self {
            Self::Auth(AuthError::IssuerDown { retry_after, .. }) => *retry_after,
            Self::Misconfigured => 30,
            Self::Restarting | Self::Overloaded => 1,
            _ => 5,
        }
    }

    fn leaves_body_unread(&self) -> bool {
        !matches!(
            self,
            Self::Call(_)
                | Self::Version(..)
                | Self::HeaderMismatch(_)
                | Self::NoMethod
                | Self::NoTool
                | Self::Unheard
                | Self::NoEvent
                | Self::Denied(_)
                | Self::Scope(_)
                | Self::SessionIdMissing
                | Self::NoSession(_)
                | Self::Open(_)
                | Self::Exchange(_)
                | Self::Send(_)
                | Self::NoRoom(_)
                // These come before the body too, but a client without a token is
                // the usual first request: hyper drains what is small.
                | Self::Auth(_)
        )
    }
}

impl Refusal {
    /// Of a call that did not enter the session that its client has opened.
    pub fn of_call(error: SendError) -> Self {
        match error {
            SendError::Busy | SendError::ServerCalls => Self::NoRoom(error),
            error => Self::Send(error),
        }
    }

    /// Of a message that did not enter a session its client knows nothing of.
    pub fn of_shared(error: SendError) -> Self {
        match error {
            SendError::Gone => Self::Open(OpenError::Failed(Failure::ChildEnded)),
            error => Self::Send(error),
        }
    }
}

impl From<NoStream> for Refusal {
    fn from(error: NoStream) -> Self {
        match error {
            NoStream::Gone(error) => Self::Send(error),
            NoStream::Event => Self::NoEvent,
        }
    }
}

const DPOP_NONCE: &str = "dpop-nonce";

fn sending(error: SendError) -> Reason {
    match error {
        SendError::Gone => Reason::SessionUnknown,
        SendError::DuplicateId => Reason::IdInUse,
        SendError::Busy => Reason::InFlightLimit,
        SendError::ServerCalls => Reason::CallLimit,
        SendError::UserCalls => Reason::UserCallLimit,
        SendError::NotAsked => Reason::NotAsked,
        SendError::State(error) => match error {
            StateError::Invalid => Reason::StateInvalid,
            StateError::Mismatch => Reason::StateOfAnother,
            StateError::Expired => Reason::StateExpired,
            StateError::Used => Reason::StateUsed,
            StateError::Lost => Reason::StateLost,
        },
    }
}
