//! Who holds how many connections, and which is closed for a new one.
//!
//! One address has a share, not all there is. Where all places are taken, the
//! address that holds most gives up what has done nothing for longest (conn-9,
//! conn-10): who comes last is served first, and a flood pushes out itself.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::activity::Activity;

/// All connections of a listener.
#[derive(Default)]
pub struct Roster(Mutex<Places>);

#[derive(Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, Place>,
    by_address: HashMap<IpAddr, usize>,
}

struct Place {
    /// Whose it is, where one address is one client.
    address: Option<IpAddr>,
    activity: Activity,
}

impl Roster {
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection has come; its place is given back when what is returned is dropped.
    pub(super) fn enter(&self, activity: &Activity) -> Seat<'_> {
        let mut places = self.places();
        let number = places.next;
        places.next += 1;
        let place = Place {
            address: None,
            activity: activity.clone(),
        };
        places.taken.insert(number, place);
        Seat {
            roster: self,
            number,
        }
    }

    /// Whether some connection could be closed for a new one.
    pub fn has_room_to_make(&self) -> bool {
        self.places()
            .taken
            .values()
            .any(|place| place.activity.may_be_shed())
    }

    /// Closes one for a new one.
    pub fn make_room(&self) {
        let places = self.places();
        let holds = |place: &Place| {
            place
                .address
                .and_then(|address| places.by_address.get(&address))
                .copied()
                .unwrap_or(1)
        };
        let victim = places
            .taken
            .iter()
            .filter(|(_, place)| place.activity.may_be_shed())
            .max_by_key(|(_, place)| (holds(place), Reverse(place.activity.idle_since())));
        if let Some((_, place)) = victim {
            place.activity.shed();
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place.
pub(super) struct Seat<'a> {
    roster: &'a Roster,
    number: u64,
}

impl Seat<'_> {
    /// Says whose it is; gives how many that address holds now.
    pub(super) fn belongs_to(&self, address: IpAddr) -> usize {
        let address = client(address);
        let mut places = self.roster.places();
        if let Some(place) = places.taken.get_mut(&self.number) {
            place.address = Some(address);
        }
        let held = places.by_address.entry(address).or_default();
        *held += 1;
        *held
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut places = self.roster.places();
        let place = places.taken.remove(&self.number);
        let Some(address) = place.and_then(|place| place.address) else {
            return;
        };
        if let Some(held) = places.by_address.get_mut(&address) {
            *held -= 1;
            if *held == 0 {
                places.by_address.remove(&address);
            }
        }
    }
}

/// What stands for one client: an address, or the network that one site has in IPv6.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// conn-10: a share is counted by address, and given back.
    #[test]
    fn connections_are_counted_by_address() {
        let roster = Roster::new();
        let activity = Activity::new();
        let enter = |address: &str| {
            let seat = roster.enter(&activity);
            let held = seat.belongs_to(address.parse().unwrap());
            (seat, held)
        };
        let first = enter("192.0.2.1");
        assert_eq!((first.1, enter("192.0.2.2").1), (1, 1));
        let second = enter("::ffff:192.0.2.1");
        assert_eq!(second.1, 2);
        drop(first);
        assert_eq!(enter("192.0.2.1").1, 2);
        let six = enter("2001:db8::1");
        assert_eq!(enter("2001:db8::ffff:1").1, 2);
        assert_eq!(enter("2001:db8:0:1::1").1, 1);
        drop((second, six));
        assert!(roster.places().by_address.is_empty() && roster.places().taken.is_empty());
    }

    /// conn-9: who holds most gives up what does nothing for longest.
    #[tokio::test]
    async fn the_longest_idle_connection_of_the_largest_holder_goes() {
        let roster = Roster::new();
        let enter = |address: &str| {
            let activity = Activity::new();
            let seat = roster.enter(&activity);
            seat.belongs_to(address.parse().unwrap());
            (seat, activity)
        };
        let _one = enter("192.0.2.2");
        let many: Vec<_> = (0..3).map(|_| enter("192.0.2.1")).collect();
        let busy = many[0].1.begin();
        roster.make_room();
        assert!(many[1].1.is_shed() && !many[0].1.is_shed() && !many[2].1.is_shed());
        // What it was told to leave is not chosen again.
        roster.make_room();
        assert!(many[2].1.is_shed());
        drop(busy);
        // It has just answered, and that may still be on its way.
        assert!(!many[0].1.may_be_shed());
        assert!(roster.has_room_to_make());
    }
}
