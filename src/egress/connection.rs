//! One connection of a child, from its acceptance to its record.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::TcpStream, time::Instant};

use super::{
    dial::{self, DialError},
    hello,
    outlet::{Behind, Outlet},
    proxy::{self, Asked},
    tunnel::{self, Broken},
};
use crate::{
    audit::{Egress, Event, Reason},
    config::{Destination, Door, Host},
};

/// What is known of one connection; written to the audit trail when it is dropped,
/// however that comes.
pub(super) struct Ledger {
    outlet: Arc<Outlet>,
    pub(super) host: String,
    address: Option<SocketAddr>,
    /// By a line of the configuration, and by the address that its name has.
    allowed: bool,
    reason: Option<Reason>,
    error: Option<String>,
    since: Instant,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Ledger {
    pub(super) fn open(outlet: &Arc<Outlet>, host: String) -> Self {
        Self {
            outlet: outlet.clone(),
            host,
            address: None,
            allowed: false,
            // What has not got as far as naming a host.
            reason: Some(Reason::EgressRequest),
            error: None,
            since: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    fn allow(&mut self) {
        (self.allowed, self.reason) = (true, None);
    }

    pub(super) fn deny(&mut self, reason: Reason, error: Option<String>) {
        self.allowed = false;
        (self.reason, self.error) = (Some(reason), error);
    }

    fn fail(&mut self, reason: Reason, error: Option<String>) {
        (self.reason, self.error) = (Some(reason), error);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let child = &self.outlet.child;
        self.outlet.rules.audit.record(&Event::Egress(Egress {
            child: child.number,
            pid: child.pid,
            principal: child.principal.clone(),
            host: std::mem::take(&mut self.host),
            address: self.address,
            allowed: self.allowed,
            reason: self.reason,
            error: self.error.take(),
            duration: self.since.elapsed(),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }));
    }
}

/// Serves it to its end.
pub(super) async fn run(
    outlet: &Outlet,
    ledger: &mut Ledger,
    mut stream: TcpStream,
    behind: Behind,
) {
    let (to, name, by_proxy) = match behind {
        Behind::Way(way) => {
            let name = match &way.to.host {
                // What a client is told of a forward it may take for the name, too.
                Host::Name(name) if matches!(way.door, Door::Forward(_)) => {
                    hello::Expected::Perhaps(name.clone())
                }
                Host::Name(name) => hello::Expected::Exactly(name.clone()),
                Host::Below(_) | Host::Address(_) => hello::Expected::Anything,
            };
            (way.to, name, false)
        }
        Behind::Proxy => {
            let Some((to, name)) = asked(outlet, ledger, &mut stream).await else {
                return;
            };
            (to, hello::Expected::Exactly(name), true)
        }
    };
    ledger.allow();
    let dialled = match &name {
        hello::Expected::Exactly(name) | hello::Expected::Perhaps(name) => {
            dial::by_name(&outlet.rules.resolver, name, &to).await
        }
        hello::Expected::Anything => dial::by_address(&to).await,
    };
    let remote = match dialled {
        Ok((remote, address)) => {
            ledger.address = Some(address);
            remote
        }
        Err(error) => {
            let (reason, said) = (reason(&error), error.to_string());
            if by_proxy {
                proxy::answer(&mut stream, proxy::Answer::NotReached(&said)).await;
            }
            match error {
                DialError::Forbidden { .. } => ledger.deny(reason, Some(said)),
                _ => ledger.fail(reason, Some(said)),
            }
            return;
        }
    };
    if by_proxy && !proxy::answer(&mut stream, proxy::Answer::Established).await {
        ledger.fail(Reason::EgressUnreachable, None);
        return;
    }
    let expected = hello::Rule {
        name,
        tls: hello::is_tls_port(to.port),
    };
    match tunnel::run(outlet, ledger, stream, remote, expected).await {
        Ok(()) => {}
        Err(Broken::Hello(why)) => ledger.deny(Reason::EgressName, Some(why.to_string())),
        Err(Broken::Limit) => ledger.deny(Reason::EgressLimit, None),
        Err(Broken::Idle) => ledger.fail(Reason::EgressIdle, None),
        Err(Broken::Io(error)) => {
            ledger.fail(Reason::EgressUnreachable, Some(error.to_string()));
        }
    }
}

/// Hears what the child asks its proxy for, and looks for it among the lines.
async fn asked(
    outlet: &Outlet,
    ledger: &mut Ledger,
    stream: &mut TcpStream,
) -> Option<(Destination, String)> {
    let asked = proxy::hear(stream).await;
    let refused = match asked {
        Ok(Asked { host, port }) => {
            ledger.host = format!("{host}:{port}");
            let spelled = crate::config::spelled(&host);
            let line = spelled.as_ref().and_then(|name| {
                let lines = outlet.rules.ways().iter().map(|way| &way.to);
                lines.filter(|to| to.is_for(name, port)).min_by_key(|to| {
                    // Of two lines that mean it, the exact one counts.
                    matches!(to.host, Host::Below(_))
                })
            });
            match (line, spelled) {
                (Some(line), Some(name)) => return Some((line.clone(), name)),
                _ => {
                    ledger.deny(Reason::EgressNotListed, None);
                    proxy::Answer::NotListed
                }
            }
        }
        Err(wrong) => {
            ledger.deny(Reason::EgressRequest, Some(wrong.to_string()));
            proxy::Answer::Wrong(wrong)
        }
    };
    proxy::answer(stream, refused).await;
    None
}

fn reason(error: &DialError) -> Reason {
    match error {
        DialError::Forbidden { .. } => Reason::EgressAddress,
        DialError::Unresolved(_) => Reason::EgressUnresolved,
        DialError::Unreachable(_) => Reason::EgressUnreachable,
    }
}
