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
    table::{At, Said, Table, Value},
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
    ignores_key_urls: Said<bool>,
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
        let fragment = Self {
            issuer: table.take("issuer", |value| {
                value.parsed(|text| {
                    if text == kubernetes::ISSUER {
                        Ok(text.to_owned())
                    } else {
                        url::issuer(text)
                    }
                })
            }),
            audience: table.take("audience", |value| {
                value.some(|value| value.parsed(value::not_empty))
            }),
            single_audience: table.take("single-audience", Value::truth),
            keys: keys(&mut table, &place),
            ca_file: table.take("ca-file", |value| value.parsed(value::absolute_path)),
            token_file: table.take("token-file", |value| value.parsed(value::absolute_path)),
            allow_addresses: table.take("allow-addresses", |value| value.texts(0, value::network)),
            algorithms: table.take("algorithms", |value| value.texts(1, value::algorithm)),
            leeway: table.take("leeway", |value| value.parsed(value::leeway)),
            max_lifetime: table.take("max-lifetime", |value| {
                value.parsed(value::positive_duration)
            }),
            token: table.take("token", |value| {
                let word = value.parsed(|text| value::word(text, &["access", "id"], &[]))?;
                Some(if word == "id" {
                    TokenKind::Id
                } else {
                    TokenKind::Access
                })
            }),
            legacy_typ: table.take("typ", |value| {
                let word =
                    value.parsed(|text| value::word(text, &["access-token", "legacy"], &[]))?;
                Some(word == "legacy")
            }),
            ignores_key_urls: table.take("key-urls", |value| {
                let word = value.parsed(|text| value::word(text, &["refused", "ignored"], &[]))?;
                Some(word == "ignored")
            }),
            clients: table.take("clients", |value| value.texts(1, value::not_empty)),
            subjects: table.take("subjects", |value| value.texts(1, pattern)),
            revoked: table.take("revoked", |value| value.texts(0, pattern)),
            issued_after: table.take("issued-after", |value| value.parsed(value::point_in_time)),
            required_claims: table.take("required-claims", |value| value.table(required_claims)?),
            scopes: table.take("scopes", |value| value.texts(0, value::scope)),
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
            place,
        };
        let is_id = matches!(&fragment.token, Said::Given(token) if token.value == TokenKind::Id);
        if let (true, Some(place)) = (is_id, fragment.legacy_typ.place()) {
            table.wrong(
                place,
                "`token = \"id\"` says all about the type of a token",
                "remove `typ`",
            );
        }
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
        Ok(_) => value.texts(1, value::scope),
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
pub(super) fn resolve(loader: &mut Loader, said: IssuerFragment) -> Option<Issuer> {
    let place = said.place;
    let key = |name: &str| format!("{}.{name}", place.key);
    let issuer = required(
        loader,
        said.issuer,
        &place,
        &key("issuer"),
        "add `issuer = \"https://…\"`, exactly as in `iss`",
    );
    let audience = required(
        loader,
        said.audience,
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
    let keys = match said.keys {
        Said::Given(At {
            value: KeySource::File(path),
            place,
        }) => loader.vouch(&path, &place).map(KeySource::File),
        other => Some(match (other.given(), &cluster) {
            (Some(keys), _) => keys,
            (None, Some(cluster)) => KeySource::Url(cluster.keys_url.clone()),
            (None, None) => KeySource::Discovery,
        }),
    };
    let ca_file = match said.ca_file {
        Said::Given(at) => Some(loader.vouch(&at.value, &at.place)?),
        Said::Nothing | Said::Wrong => cluster.as_ref().map(|cluster| cluster.ca_file.clone()),
    };
    let issuer = issuer?;
    let token_file = match said.token_file {
        Said::Given(at) => Some(TokenFile {
            path: loader.vouch(&at.value, &at.place)?,
            origin: url::origin_of(&issuer),
        }),
        Said::Nothing | Said::Wrong => cluster.as_ref().map(|cluster| cluster.token.clone()),
    };
    let of_kubernetes = cluster.is_some() || said.kubernetes.is_said();
    Some(Issuer {
        issuer,
        audience: audience?,
        single_audience: said.single_audience.given_or(false),
        keys: keys?,
        ca_file,
        token_file,
        allow_addresses: said.allow_addresses.given().unwrap_or_default(),
        algorithms: said
            .algorithms
            .given()
            .unwrap_or(ALGORITHMS.iter().map(|&name| name.to_owned()).collect()),
        leeway: said.leeway.given_or(LEEWAY),
        max_lifetime: said.max_lifetime.given_or(MAX_LIFETIME),
        token: said.token.given_or(TokenKind::Access),
        // Its tokens name no type at all.
        legacy_typ: said.legacy_typ.given_or(of_kubernetes),
        ignores_key_urls: said.ignores_key_urls.given_or(false),
        clients: said.clients.given().unwrap_or_default(),
        subjects: said.subjects.given().unwrap_or_default(),
        revoked: said.revoked.given().unwrap_or_default(),
        issued_after: said.issued_after.given(),
        required_claims: said.required_claims.given().unwrap_or_default(),
        scopes: said.scopes.given().unwrap_or_default(),
        implied_scopes: said.implied_scopes.given().unwrap_or_default(),
        kubernetes: said.kubernetes.given(),
        introspection: said.introspection.given(),
        dpop: said.dpop.given_or(Dpop::Off),
        dpop_nonce: said.dpop_nonce.given_or(true),
    })
}

fn pattern(text: &str) -> Result<Pattern, String> {
    value::not_empty(text).map(|text| Pattern::new(&text))
}

/// Clock difference that is usual between synchronised machines, with room.
const LEEWAY: Duration = Duration::from_secs(30);
/// What a token lives at most, where nothing is said (tok-66).
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
