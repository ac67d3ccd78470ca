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
}
