//! Who holds how many connections, and which is closed for a new one.
//!
//! One address has a share, not all there is. Where all places are taken, the
//! address that holds most gives up what has done nothing for longest (conn-9,
//! conn-10): who comes last is served first, and a flood pushes out itself. To look at all of them
//! for each that comes would be the flood's work for it: several are chosen at once.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::activity::Activity;

/// All connections of a listener.
#[derive(Default)]
pub struct Roster(Mutex<Places>);

#[derive(Default)]
struct Places {
    next: u64,
    taken: HashMap<u64, Place>,
    by_address: HashMap<IpAddr, usize>,
    /// Which are closed next, the first one last, and since when they had done nothing when that was
    /// looked at.
    chosen: Vec<(u64, Instant)>,
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
        self.places().next().is_some()
    }

    /// Closes one for a new one.
    pub fn make_room(&self) {
        let mut places = self.places();
        if let Some(activity) = places.next() {
            activity.shed();
            places.chosen.pop();
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// The next one to be closed: of those that were chosen, where one is still there and has done nothing since.
    fn next(&mut self) -> Option<&Activity> {
        let now = Instant::now();
        let taken = &self.taken;
        let rests = |(number, since): &(u64, Instant)| {
            let place = taken.get(number);
            place.and_then(|place| place.activity.may_be_shed(now)) == Some(*since)
        };
        let last = self.chosen.iter().rposition(rests);
        self.chosen.truncate(last.map_or(0, |last| last + 1));
        if self.chosen.is_empty() {
            self.choose(now);
        }
        let (number, _) = self.chosen.last()?;
        self.taken.get(number).map(|place| &place.activity)
    }

    /// Chooses as if one after the other were closed: who holds most gives up one and holds one less.
    fn choose(&mut self, now: Instant) {
        let rests = |(number, place): (&u64, &Place)| {
            let since = place.activity.may_be_shed(now)?;
            Some((since, *number, place.address))
        };
        let mut rest: Vec<_> = self.taken.iter().filter_map(rests).collect();
        rest.sort_unstable_by_key(|(since, number, _)| (*since, *number));
        let mut left = self.by_address.clone();
        let mut holds = |address: Option<IpAddr>| {
            let left = left.get_mut(&address?)?;
            *left -= 1;
            Some(*left + 1)
        };
        let mut order: Vec<_> = rest
            .into_iter()
            .map(|(since, number, address)| (Reverse(holds(address).unwrap_or(1)), since, number))
            .collect();
        let chosen = self.taken.len().div_ceil(SHARE).min(order.len());
        if chosen < order.len() {
            order.select_nth_unstable(chosen);
            order.truncate(chosen);
        }
        order.sort_unstable();
        let order = order.into_iter().rev();
        self.chosen = order.map(|(_, since, number)| (number, since)).collect();
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

/// The part of all that is chosen at once: so many are looked at for each that comes, however many
/// there are. Who begins to take more than others is seen when that part has gone.
const SHARE: usize = 64;

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

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
        assert!(many[0].1.may_be_shed(Instant::now()).is_none());
        assert!(roster.has_room_to_make());
    }

    /// Several are chosen at once, as if it were one after the other; what has done something since is not closed.
    #[tokio::test(start_paused = true)]
    async fn several_are_chosen_at_once_as_one_after_the_other_would_be() {
        let roster = Roster::new();
        let mut all = Vec::new();
        // Two hold more than the others, and one of them three more than the other.
        for (address, connections) in [(2, 33), (1, 36), (3, 5 * SHARE - 69)] {
            for of in 0..connections {
                let address = match address {
                    3 => Ipv4Addr::from(0x0a00_0000 + of as u32),
                    one_of_two => Ipv4Addr::new(192, 0, 2, one_of_two),
                };
                let activity = Activity::new();
                let seat = roster.enter(&activity);
                seat.belongs_to(address.into());
                tokio::time::advance(Duration::from_millis(1)).await;
                all.push((seat, address.octets()[3], activity));
            }
        }
        let mut gone = Vec::new();
        for _ in 0..5 {
            roster.make_room();
            let at = all.iter().position(|(_, _, activity)| activity.is_shed());
            let (_, address, _) = all.remove(at.unwrap());
            gone.push(address);
        }
        assert_eq!(gone, [1, 1, 1, 2, 1]);
        roster.make_room();
        assert_eq!(roster.places().chosen.len(), 5 - 1);
        // The next that was chosen asks something, and the one after it has left.
        let next: Vec<u64> = roster
            .places()
            .chosen
            .iter()
            .rev()
            .map(|(number, _)| *number)
            .collect();
        let seat = |number: u64| all.iter().position(|(seat, ..)| seat.number == number);
        drop(all[seat(next[0]).unwrap()].2.begin());
        tokio::time::advance(Duration::from_secs(2)).await;
        drop(all.remove(seat(next[1]).unwrap()));
        roster.make_room();
        let seat = |number: u64| all.iter().find(|(seat, ..)| seat.number == number);
        assert!(!seat(next[0]).unwrap().2.is_shed());
        assert!(seat(next[2]).unwrap().2.is_shed());
    }

    /// conn-9: who begins to take all there is pushes out few others before himself.
    #[tokio::test(start_paused = true)]
    async fn a_new_flood_pushes_out_itself() {
        let roster = Roster::new();
        let enter = |address: u32| {
            let activity = Activity::new();
            let seat = roster.enter(&activity);
            seat.belongs_to(Ipv4Addr::from(address).into());
            (seat, activity)
        };
        let others = 10 * SHARE;
        let mut all: Vec<_> = (0..others)
            .map(|of| enter(0x0a00_0000 + of as u32))
            .collect();
        let mut flood = Vec::new();
        for _ in 0..others {
            tokio::time::advance(Duration::from_millis(1)).await;
            roster.make_room();
            let before = all.len() + flood.len();
            for connections in [&mut all, &mut flood] {
                connections.retain(|(_, activity)| !activity.is_shed());
            }
            assert_eq!(all.len() + flood.len(), before - 1);
            flood.push(enter(0xc000_0201));
        }
        assert_eq!(flood.len(), others / SHARE + 1);
    }
}
