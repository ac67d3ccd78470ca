//! `[[auth.issuer]]`: from keys in a file to an [`Issuer`].
//!
//! Read like every other table (`fragment`), resolved like every other key
//! (`resolve`); here because it is one thing with many keys.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;

use super::{
    ClaimValue, Dpop, Introspection, Issuer, KeySource, Pattern, RequiredClaim, ServiceAccount,
    TokenFile, TokenKind, kubernetes,
    load::Loader,
    problem::Place,
    resolve::required,
    table::{At, Said, Table, Value, plain},
    url,
    value::{self, ALGORITHMS},
};

#[derive(Clone, Debug)]
pub(super) struct IssuerFragment {
    place: Place,
    issuer: Said<String>,
    audience: Said<Vec<String>>,
    single_audience: Said<bool>,
    keys: Said<KeySource>,
    ca_file: Said<PathBuf>,
    token_file: Said<PathBuf>,
    allow_addresses: Said<Vec<IpNet>>,
    algorithms: Said<Vec<String>>,
    leeway: Said<Duration>,
    max_lifetime: Said<Duration>,
    token: Said<TokenKind>,
    legacy_typ: Said<bool>,
    clients: Said<Vec<String>>,
    subjects: Said<Vec<Pattern>>,
    revoked: Said<Vec<Pattern>>,
    issued_after: Said<u64>,
    required_claims: Said<Vec<RequiredClaim>>,
    scopes: Said<Vec<String>>,
    implied_scopes: Said<Vec<(String, Vec<String>)>>,
    kubernetes: Said<ServiceAccount>,
    introspection: Said<Introspection>,
    dpop: Said<Dpop>,
    dpop_nonce: Said<bool>,
}

impl IssuerFragment {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let place = table.place();
        let issuer = table.take("issuer", |value| {
            value.parsed(|text| {
                if text == kubernetes::ISSUER {
                    Ok(text.to_owned())
                } else {
                    url::issuer(text)
                }
            })
        });
        let audience = table.take("audience", |value| {
            value.some(|value| value.parsed(value::not_empty))
        });
        let single_audience = table.take("single-audience", Value::truth);
        let keys = keys(&mut table, &place);
        let ca_file = table.take("ca-file", |value| value.parsed(value::absolute_path));
        let token_file = table.take("token-file", |value| value.parsed(value::absolute_path));
        let allow_addresses = table.take("allow-addresses", |value| texts(value, value::network));
        let algorithms = table.take("algorithms", |value| texts(value, value::algorithm));
        let leeway = table.take("leeway", |value| value.parsed(value::leeway));
        let max_lifetime = table.take("max-lifetime", |value| {
            value.parsed(value::positive_duration)
        });
        let token = table.take("token", |value| {
            let word = value.parsed(|text| value::word(text, &["access", "id"], &[]))?;
            Some(if word == "id" {
                TokenKind::Id
            } else {
                TokenKind::Access
            })
        });
        let legacy_typ = table.take("typ", |value| {
            let word = value.parsed(|text| value::word(text, &["access-token", "legacy"], &[]))?;
            Some(word == "legacy")
        });
        if let (
            Said::Given(At {
                value: TokenKind::Id,
                ..
            }),
            Some(place),
        ) = (&token, legacy_typ.place())
        {
            table.wrong(
                place,
                "`token = \"id\"` says all about the type of a token",
                "remove `typ`",
            );
        }
        let fragment = Self {
            place,
            issuer,
            audience,
            single_audience,
            keys,
            ca_file,
            token_file,
            allow_addresses,
            algorithms,
            leeway,
            max_lifetime,
            token,
            legacy_typ,
            clients: table.take("clients", |value| texts(value, value::not_empty)),
            subjects: table.take("subjects", |value| texts(value, pattern)),
            revoked: table.take("revoked", |value| texts(value, pattern)),
            issued_after: table.take("issued-after", |value| value.parsed(value::point_in_time)),
            required_claims: table.take("required-claims", |value| value.table(required_claims)?),
            scopes: table.take("scopes", |value| texts(value, value::scope)),
            implied_scopes: table.take("implied-scopes", |value| value.table(implied_scopes)?),
            kubernetes: table.take("kubernetes", |value| value.table(service_account)?),
            introspection: table.take("introspection", |value| value.table(introspection)?),
            dpop: table.take("dpop", |value| {
                let word = value
                    .parsed(|text| value::word(text, &["off", "accepted", "required"], &[]))?;
                Some(match word {
                    "accepted" => Dpop::Accepted,
                    "required" => Dpop::Required,
                    _ => Dpop::Off,
                })
            }),
            dpop_nonce: table.take("dpop-nonce", Value::truth),
        };
        table.finish(&[]);
        fragment
    }
}

fn keys(table: &mut Table<'_>, place: &Place) -> Said<KeySource> {
    let url = table.take("jwks-url", |value| {
        value.parsed(url::fetched).map(KeySource::Url)
    });
    let file = table.take("jwks-file", |value| {
        value.parsed(value::absolute_path).map(KeySource::File)
    });
    if url.is_said() && file.is_said() {
        table.wrong(
            file.place().unwrap_or(place),
            "`jwks-url` and `jwks-file` both say where the keys are",
            "remove one of the two",
        );
    }
    file.or(url)
}

fn required_claims(mut table: Table<'_>) -> Option<Vec<RequiredClaim>> {
    let claims = table.rest(|_, value| value.some(claim_value));
    table.finish(&[]);
    claims
        .into_iter()
        .map(|(name, accepted)| {
            let accepted = accepted.given()?;
            Some(RequiredClaim { name, accepted })
        })
        .collect()
}

fn claim_value(value: &Value<'_>) -> Option<ClaimValue> {
    value.scalar(ClaimValue::Text, ClaimValue::Truth, ClaimValue::Number)
}

fn implied_scopes(mut table: Table<'_>) -> Option<Vec<(String, Vec<String>)>> {
    let scopes = table.rest(|name, value| match value::scope(name) {
        Ok(_) => texts(value, value::scope),
        Err(error) => value.wrong(error, ""),
    });
    table.finish(&[]);
    scopes
        .into_iter()
        .map(|(name, implied)| Some((name, implied.given()?)))
        .collect()
}

fn service_account(mut table: Table<'_>) -> Option<ServiceAccount> {
    let name = |value: &Value<'_>| value.parsed(kubernetes::name);
    let namespace = table.needed("namespace", name);
    let account = table.needed("service-account", name);
    table.finish(&[]);
    Some(ServiceAccount {
        namespace: namespace?,
        name: account?,
    })
}

fn introspection(mut table: Table<'_>) -> Option<Introspection> {
    let url = table.take("url", |value| value.parsed(url::fetched));
    let client_id = table.needed("client-id", |value| value.parsed(value::not_empty));
    let credential = table.needed("credential", |value| value.parsed(value::credential));
    table.finish(&[]);
    if matches!(url, Said::Wrong) {
        return None;
    }
    Some(Introspection {
        url: url.given(),
        client_id: client_id?,
        credential: credential?,
    })
}

/// A fragment with its defaults; `None` when something was reported.
pub(super) fn resolve(loader: &mut Loader, fragment: IssuerFragment) -> Option<Issuer> {
    let IssuerFragment {
        place,
        issuer,
        audience,
        single_audience,
        keys,
        ca_file,
        token_file,
        allow_addresses,
        algorithms,
        leeway,
        max_lifetime,
        token,
        legacy_typ,
        clients,
        subjects,
        revoked,
        issued_after,
        required_claims,
        scopes,
        implied_scopes,
        kubernetes,
        introspection,
        dpop,
        dpop_nonce,
    } = fragment;
    let key = |name: &str| format!("{}.{name}", place.key);
    let issuer = required(
        loader,
        issuer,
        &place,
        &key("issuer"),
        "add `issuer = \"https://…\"`, exactly as in `iss`",
    );
    let audience = required(
        loader,
        audience,
        &place,
        &key("audience"),
        "add `audience = [\"…\"]`; without it tokens made for others would be accepted",
    );
    let mut cluster = None;
    let issuer = match issuer {
        Some(text) => match kubernetes::in_cluster(loader, &text) {
            Ok(found) => {
                let named = found.as_ref().map(|cluster| cluster.issuer.clone());
                cluster = found;
                Some(named.unwrap_or(text))
            }
            Err((message, help)) => {
                loader.report(place.about(&key("issuer")).problem(message, help));
                None
            }
        },
        None => None,
    };
    let keys = match keys {
        Said::Given(At {
            value: KeySource::File(path),
            place,
        }) => loader.vouch(&path, &place).map(KeySource::File),
        other => Some(match (other.given(), &cluster) {
            (Some(said), _) => said,
            (None, Some(cluster)) => KeySource::Url(cluster.keys_url.clone()),
            (None, None) => KeySource::Discovery,
        }),
    };
    let ca_file = match ca_file {
        Said::Given(at) => Some(loader.vouch(&at.value, &at.place)?),
        Said::Nothing | Said::Wrong => cluster.as_ref().map(|cluster| cluster.ca_file.clone()),
    };
    let issuer = issuer?;
    let token_file = match token_file {
        Said::Given(at) => Some(TokenFile {
            path: loader.vouch(&at.value, &at.place)?,
            origin: url::origin_of(&issuer),
        }),
        Said::Nothing | Said::Wrong => cluster.as_ref().map(|cluster| cluster.token.clone()),
    };
    let of_kubernetes = cluster.is_some() || kubernetes.is_said();
    Some(Issuer {
        issuer,
        audience: audience?,
        single_audience: single_audience.given().unwrap_or(false),
        keys: keys?,
        ca_file,
        token_file,
        allow_addresses: allow_addresses.given().unwrap_or_default(),
        algorithms: algorithms
            .given()
            .unwrap_or(ALGORITHMS.iter().map(|&name| name.to_owned()).collect()),
        leeway: leeway.given().unwrap_or(LEEWAY),
        max_lifetime: max_lifetime.given().unwrap_or(MAX_LIFETIME),
        token: token.given().unwrap_or(TokenKind::Access),
        // Its tokens name no type at all.
        legacy_typ: legacy_typ.given().unwrap_or(of_kubernetes),
        clients: clients.given().unwrap_or_default(),
        subjects: subjects.given().unwrap_or_default(),
        revoked: revoked.given().unwrap_or_default(),
        issued_after: issued_after.given(),
        required_claims: required_claims.given().unwrap_or_default(),
        scopes: scopes.given().unwrap_or_default(),
        implied_scopes: implied_scopes.given().unwrap_or_default(),
        kubernetes: kubernetes.given(),
        introspection: introspection.given(),
        dpop: dpop.given().unwrap_or(Dpop::Off),
        dpop_nonce: dpop_nonce.given().unwrap_or(true),
    })
}

fn texts<T>(value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
    value.list(1, |element| element.parsed(&parse)).map(plain)
}

fn pattern(text: &str) -> Result<Pattern, String> {
    value::not_empty(text).map(|text| Pattern::new(&text))
}

/// Clock difference that is usual between synchronised machines, with room.
const LEEWAY: Duration = Duration::from_secs(30);
/// What a token lives at most, where nothing is said (tok-66).
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
