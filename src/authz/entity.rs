//! Identities and targets as Cedar entities.
//!
//! Ids and attributes come from strangers: they are only ever built as values
//! (`from_type_name_and_id`, `RestrictedExpression`), never by writing Cedar
//! text or Cedar JSON, in which `__entity` and `__extn` would mean something
//! (cedar-4, cedar-5).

use std::collections::{HashMap, HashSet};

use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};

use crate::{
    auth::{Identity, Kind},
    config::ServerName,
    mcp::Target,
};

/// `User::"ISSUER|SUBJECT"` or `Client::"ISSUER|SUBJECT"`, with its attributes.
pub(super) fn principal(identity: &Identity) -> Entity {
    principal_with(identity, identity.scopes().iter())
}

/// How policies call a caller: what `principal ==` is compared with.
pub fn principal_name(identity: &Identity) -> String {
    principal(identity).uid().to_string()
}

/// The same, as if its token had these scopes.
pub(super) fn principal_with<'a>(
    identity: &Identity,
    scopes: impl Iterator<Item = &'a str>,
) -> Entity {
    let kind = match identity.kind() {
        Kind::User => "User",
        Kind::Client => "Client",
    };
    let id = format!("{}|{}", identity.issuer(), identity.subject());
    let mut attributes = HashMap::from([
        ("issuer".to_owned(), string(identity.issuer())),
        ("subject".to_owned(), string(identity.subject())),
        ("groups".to_owned(), set(identity.groups().iter())),
        ("scopes".to_owned(), set(scopes)),
    ]);
    if let Some(client) = identity.client() {
        attributes.insert("client".to_owned(), string(client));
    }
    entity(uid(kind, &id), attributes, HashSet::new())
}

/// `Server::"NAME"`.
pub(super) fn server(name: &ServerName) -> Entity {
    named(
        uid("Server", name.as_str()),
        "name",
        name.as_str(),
        HashSet::new(),
    )
}

/// Whether it is one of those.
pub(super) fn is_server(uid: &EntityUid) -> bool {
    uid.type_name().basename() == "Server"
}

/// What is asked for, below its server; `None` for the server itself.
pub(super) fn target(target: &Target<'_>, server: &EntityUid) -> Option<Entity> {
    let (kind, attribute, value) = match target {
        Target::Server => return None,
        Target::Tool(name) => ("Tool", "name", name),
        Target::Prompt(name) => ("Prompt", "name", name),
        Target::Resource(uri) => ("Resource", "uri", uri),
    };
    Some(named(
        uid(kind, value),
        attribute,
        value,
        HashSet::from([server.clone()]),
    ))
}

/// `Action::"METHOD"`.
pub(super) fn action(method: &str) -> EntityUid {
    uid("Action", method)
}

fn named(uid: EntityUid, attribute: &str, value: &str, parents: HashSet<EntityUid>) -> Entity {
    entity(
        uid,
        HashMap::from([(attribute.to_owned(), string(value))]),
        parents,
    )
}

fn entity(
    uid: EntityUid,
    attributes: HashMap<String, RestrictedExpression>,
    parents: HashSet<EntityUid>,
) -> Entity {
    Entity::new(uid, attributes, parents)
        .expect("strings and sets of strings always evaluate: only extension calls can fail")
}

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind
        .parse()
        .expect("the type names are constants of this file");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}

fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn set<'a>(texts: impl Iterator<Item = &'a str>) -> RestrictedExpression {
    RestrictedExpression::new_set(texts.map(string))
}
