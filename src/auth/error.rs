//! Why a caller has no identity.

/// What became of a request's credentials.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuthError {
    /// No bearer token was shown: answered 401 without an error code (RFC 6750 §3.1).
    #[error("a bearer token is required")]
    Missing,
    /// The request itself is malformed: 400 `invalid_request`.
    #[error("the Authorization header is malformed")]
    Malformed(Fault),
    /// The token is not good for this server: 401 `invalid_token`.
    #[error("the token is not valid here")]
    Rejected(Fault),
    /// The token is good, but was issued for less than every call needs:
    /// 403 `insufficient_scope`, with all that is needed.
    #[error("the token lacks a scope")]
    Scope(Vec<String>),
    /// The proof of possession is not good: 401 `invalid_dpop_proof` (RFC 9449 §7.1).
    #[error("the proof of possession is not valid here")]
    Proof,
    /// The proof lacks the current nonce, which is this: 401 `use_dpop_nonce` (RFC 9449 §9).
    #[error("the proof of possession needs a nonce")]
    Nonce(String),
    /// Nobody can tell now: the issuer's keys cannot be had. 503.
    #[error("the identity provider cannot be reached")]
    IssuerDown {
        issuer: String,
        /// Seconds until asking again makes sense.
        retry_after: u64,
    },
}

/// Which check failed: for the record. Clients are told no more than `invalid_token`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// Two tokens, or two places.
    Ambiguous,
    /// Not a token, or not a JWT, by its form.
    Form,
    /// `typ` is not that of an access token, or the claims are an ID token's.
    Type,
    Algorithm,
    KeyUnknown,
    Signature,
    Issuer,
    Audience,
    Expired,
    NotYetValid,
    /// A claim is missing, of the wrong type, or out of its bounds.
    Claim,
    /// The token's client is not one of `clients`.
    Client,
    /// `subjects` or `kubernetes` name others.
    Subject,
    /// `revoked` or `issued-after` rule it out.
    Revoked,
    /// A claim of `required-claims` is missing or has another value.
    RequiredClaim,
    /// The issuer says that it is not, or no longer, good (RFC 7662 §2.2).
    Inactive,
    /// It is bound to no key, and only bound tokens are accepted.
    Unbound,
    /// It is bound to a key, and was shown without proof of it, or with another's.
    Binding,
}
