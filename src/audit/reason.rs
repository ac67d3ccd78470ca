//! Why not: the fixed vocabulary of `THV_REASON`.

use crate::auth::{AuthError, Fault};

/// Why thv refused a request, or why what it permitted did not succeed.
///
/// The words are part of the interface: auditors filter by them, thv-journal(7) lists them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reason {
    // The HTTP request.
    BadHeader,
    Framing,
    BodyTooLarge,
    BodyTimeout,
    Overloaded,
    HostNotAccepted,
    OriginNotAccepted,
    PathUnknown,
    HttpMethod,
    MediaType,
    NotAcceptable,
    ConnectionLimit,
    // The token.
    TokenMissing,
    TokenAmbiguous,
    TokenMalformed,
    TokenType,
    TokenAlgorithm,
    TokenKeyUnknown,
    TokenSignature,
    TokenIssuer,
    TokenAudience,
    TokenExpired,
    TokenNotYetValid,
    TokenClaim,
    TokenClient,
    TokenSubject,
    TokenRevoked,
    TokenRequiredClaim,
    TokenInactive,
    TokenUnbound,
    TokenBinding,
    ProofInvalid,
    ProofNonce,
    ScopeInsufficient,
    ProviderUnavailable,
    // The message.
    NotJson,
    NotJsonRpc,
    BadParameters,
    MethodUnknown,
    VersionUnsupported,
    HeaderMismatch,
    // The policies.
    Policy,
    PolicyError,
    // The session.
    SessionMissing,
    SessionUnknown,
    SessionOfAnother,
    EventUnknown,
    SessionLimit,
    UserSessionLimit,
    InFlightLimit,
    CallLimit,
    UserCallLimit,
    IdInUse,
    NotAsked,
    StateInvalid,
    StateOfAnother,
    StateExpired,
    StateUsed,
    StateLost,
    InputRefused,
    // The server behind thv.
    ChildStartFailed,
    ChildGone,
    ChildProtocol,
    /// A line of the child's was longer than one message may be.
    ChildLine,
    /// A message of the server's was longer than one may be.
    MessageTooLarge,
    ServerUnreachable,
    ServerRefused,
    ExchangeRefused,
    RunnerUnavailable,
    CallTimeout,
    AnswerDropped,
    Cancelled,
    ClientGone,
    ServerError,
    // A child's way out.
    EgressNotListed,
    EgressRequest,
    EgressAddress,
    EgressName,
    EgressLimit,
    EgressUnresolved,
    EgressUnreachable,
    EgressIdle,
    // thv itself.
    Misconfigured,
    Stopping,
    Internal,
}

impl Reason {
    pub const ALL: &[Self] = &[
        Self::BadHeader,
        Self::Framing,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::Overloaded,
        Self::HostNotAccepted,
        Self::OriginNotAccepted,
        Self::PathUnknown,
        Self::HttpMethod,
        Self::MediaType,
        Self::NotAcceptable,
        Self::ConnectionLimit,
        Self::TokenMissing,
        Self::TokenAmbiguous,
        Self::TokenMalformed,
        Self::TokenType,
        Self::TokenAlgorithm,
        Self::TokenKeyUnknown,
        Self::TokenSignature,
        Self::TokenIssuer,
        Self::TokenAudience,
        Self::TokenExpired,
        Self::TokenNotYetValid,
        Self::TokenClaim,
        Self::TokenClient,
        Self::TokenSubject,
        Self::TokenRevoked,
        Self::TokenRequiredClaim,
        Self::TokenInactive,
        Self::TokenUnbound,
        Self::TokenBinding,
        Self::ProofInvalid,
        Self::ProofNonce,
        Self::ScopeInsufficient,
        Self::ProviderUnavailable,
        Self::NotJson,
        Self::NotJsonRpc,
        Self::BadParameters,
        Self::MethodUnknown,
        Self::VersionUnsupported,
        Self::HeaderMismatch,
        Self::Policy,
        Self::PolicyError,
        Self::SessionMissing,
        Self::SessionUnknown,
        Self::SessionOfAnother,
        Self::EventUnknown,
        Self::SessionLimit,
        Self::UserSessionLimit,
        Self::InFlightLimit,
        Self::CallLimit,
        Self::UserCallLimit,
        Self::IdInUse,
        Self::NotAsked,
        Self::StateInvalid,
        Self::StateOfAnother,
        Self::StateExpired,
        Self::StateUsed,
        Self::StateLost,
        Self::InputRefused,
        Self::ChildStartFailed,
        Self::ChildGone,
        Self::ChildProtocol,
        Self::ChildLine,
        Self::MessageTooLarge,
        Self::ServerUnreachable,
        Self::ServerRefused,
        Self::ExchangeRefused,
        Self::RunnerUnavailable,
        Self::CallTimeout,
        Self::AnswerDropped,
        Self::Cancelled,
        Self::ClientGone,
        Self::ServerError,
        Self::EgressNotListed,
        Self::EgressRequest,
        Self::EgressAddress,
        Self::EgressName,
        Self::EgressLimit,
        Self::EgressUnresolved,
        Self::EgressUnreachable,
        Self::EgressIdle,
        Self::Misconfigured,
        Self::Stopping,
        Self::Internal,
    ];

    /// The word in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadHeader => "bad-header",
            Self::Framing => "framing",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyTimeout => "body-timeout",
            Self::Overloaded => "overloaded",
            Self::HostNotAccepted => "host-not-accepted",
            Self::OriginNotAccepted => "origin-not-accepted",
            Self::PathUnknown => "path-unknown",
            Self::HttpMethod => "http-method",
            Self::MediaType => "media-type",
            Self::NotAcceptable => "not-acceptable",
            Self::ConnectionLimit => "connection-limit",
            Self::TokenMissing => "token-missing",
            Self::TokenAmbiguous => "token-ambiguous",
            Self::TokenMalformed => "token-malformed",
            Self::TokenType => "token-type",
            Self::TokenAlgorithm => "token-algorithm",
            Self::TokenKeyUnknown => "token-key-unknown",
            Self::TokenSignature => "token-signature",
            Self::TokenIssuer => "token-issuer",
            Self::TokenAudience => "token-audience",
            Self::TokenExpired => "token-expired",
            Self::TokenNotYetValid => "token-not-yet-valid",
            Self::TokenClaim => "token-claim",
            Self::TokenClient => "token-client",
            Self::TokenSubject => "token-subject",
            Self::TokenRevoked => "token-revoked",
            Self::TokenRequiredClaim => "token-required-claim",
            Self::TokenInactive => "token-inactive",
            Self::TokenUnbound => "token-unbound",
            Self::TokenBinding => "token-binding",
            Self::ProofInvalid => "proof-invalid",
            Self::ProofNonce => "proof-nonce",
            Self::ScopeInsufficient => "scope-insufficient",
            Self::ProviderUnavailable => "provider-unavailable",
            Self::NotJson => "not-json",
            Self::NotJsonRpc => "not-json-rpc",
            Self::BadParameters => "bad-parameters",
            Self::MethodUnknown => "method-unknown",
            Self::VersionUnsupported => "version-unsupported",
            Self::Policy => "policy",
            Self::PolicyError => "policy-error",
            Self::HeaderMismatch => "header-mismatch",
            Self::EventUnknown => "event-unknown",
            Self::SessionMissing => "session-missing",
            Self::SessionUnknown => "session-unknown",
            Self::SessionOfAnother => "session-of-another",
            Self::SessionLimit => "session-limit",
            Self::UserSessionLimit => "user-session-limit",
            Self::InFlightLimit => "in-flight-limit",
            Self::CallLimit => "call-limit",
            Self::UserCallLimit => "user-call-limit",
            Self::IdInUse => "id-in-use",
            Self::NotAsked => "not-asked",
            Self::StateInvalid => "state-invalid",
            Self::StateOfAnother => "state-of-another",
            Self::StateExpired => "state-expired",
            Self::StateUsed => "state-used",
            Self::StateLost => "state-lost",
            Self::InputRefused => "input-refused",
            Self::ChildStartFailed => "child-start-failed",
            Self::ChildGone => "child-gone",
            Self::ChildProtocol => "child-protocol",
            Self::ChildLine => "child-line",
            Self::MessageTooLarge => "message-too-large",
            Self::ServerUnreachable => "server-unreachable",
            Self::ServerRefused => "server-refused",
            Self::ExchangeRefused => "exchange-refused",
            Self::RunnerUnavailable => "runner-unavailable",
            Self::CallTimeout => "call-timeout",
            Self::AnswerDropped => "answer-dropped",
            Self::Cancelled => "cancelled",
            Self::ClientGone => "client-gone",
            Self::ServerError => "server-error",
            Self::EgressNotListed => "egress-not-listed",
            Self::EgressRequest => "egress-request",
            Self::EgressAddress => "egress-address",
            Self::EgressName => "egress-name",
            Self::EgressLimit => "egress-limit",
            Self::EgressUnresolved => "egress-unresolved",
            Self::EgressUnreachable => "egress-unreachable",
            Self::EgressIdle => "egress-idle",
            Self::Misconfigured => "misconfigured",
            Self::Stopping => "stopping",
            Self::Internal => "internal",
        }
    }
}

impl From<&AuthError> for Reason {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Missing => Self::TokenMissing,
            AuthError::Scope(_) => Self::ScopeInsufficient,
            AuthError::Proof => Self::ProofInvalid,
            AuthError::Nonce(_) => Self::ProofNonce,
            AuthError::IssuerDown { .. } => Self::ProviderUnavailable,
            AuthError::Malformed(fault) | AuthError::Rejected(fault) => match fault {
                Fault::Ambiguous => Self::TokenAmbiguous,
                Fault::Form => Self::TokenMalformed,
                Fault::Type => Self::TokenType,
                Fault::Algorithm => Self::TokenAlgorithm,
                Fault::KeyUnknown => Self::TokenKeyUnknown,
                Fault::Signature => Self::TokenSignature,
                Fault::Issuer => Self::TokenIssuer,
                Fault::Audience => Self::TokenAudience,
                Fault::Expired => Self::TokenExpired,
                Fault::NotYetValid => Self::TokenNotYetValid,
                Fault::Claim => Self::TokenClaim,
                Fault::Client => Self::TokenClient,
                Fault::Subject => Self::TokenSubject,
                Fault::Revoked => Self::TokenRevoked,
                Fault::RequiredClaim => Self::TokenRequiredClaim,
                Fault::Inactive => Self::TokenInactive,
                Fault::Unbound => Self::TokenUnbound,
                Fault::Binding => Self::TokenBinding,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Reason;

    #[test]
    fn every_reason_has_a_word_of_its_own_and_is_in_the_manual() {
        let manual = include_str!("../../man/thv-journal.7");
        let mut words = HashSet::new();
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(words.insert(word), "{word} twice");
            assert!(
                word.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{word}"
            );
            assert!(
                manual.lines().any(|line| line == format!(".It Li {word}")),
                "`{word}` is missing from man/thv-journal.7"
            );
        }
        // A variant that is missing from ALL would escape this test: count them in the source.
        let source = include_str!("reason.rs");
        let arms = source
            .lines()
            .filter(|line| line.trim_start().starts_with("Self::") && line.contains("=> \""))
            .count();
        assert_eq!(arms, Reason::ALL.len());
    }
}
