//! How many things may go on at once, in all and for one client (IPv6: a /64). It never waits: what is too much is refused.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    rc::Rc,
};

use super::client::key;

/// What is left to be taken.
#[derive(Debug)]
pub(super) struct Shares {
    most: usize,
    most_each: usize,
    taken: RefCell<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One that is taken; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    client: IpAddr,
    from: Rc<Shares>,
}

impl Shares {
    /// So many in all, and so many for each client.
    pub(super) fn new(most: usize, most_each: usize) -> Rc<Self> {
        Rc::new(Self { most, most_each, taken: RefCell::default() })
    }

    /// Takes one, if one is left.
    pub(super) fn take(self: &Rc<Self>, client: IpAddr) -> Option<Share> {
        let client = key(client);
        let mut taken = self.taken.borrow_mut();
        if taken.all >= self.most || taken.by_client.get(&client).is_some_and(|&count| count >= self.most_each) {
            return None;
        }
        taken.all += 1;
        *taken.by_client.entry(client).or_default() += 1;
        Some(Share { client, from: self.clone() })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.borrow().all
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.from.taken.borrow_mut();
        taken.all -= 1;
        if let Entry::Occupied(mut count) = taken.by_client.entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_for_each_client_and_for_all_and_come_back() {
        let shares = Shares::new(3, 2);
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (first, second) = (shares.take(a), shares.take(a));
        assert!(first.is_some() && second.is_some() && shares.take(a).is_none());
        let third = shares.take(b);
        assert!(third.is_some() && shares.take(b).is_none());
        drop((first, second, third));
        assert_eq!((shares.taken(), shares.taken.borrow().by_client.len()), (0, 0));
    }

    #[test]
    fn addresses_of_one_subnet_share() {
        let shares = Shares::new(9, 2);
        let address = |host: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, host]);
        let taken = (shares.take(address(1)), shares.take(address(2)));
        assert!(taken.0.is_some() && taken.1.is_some() && shares.take(address(3)).is_none());
        assert!(shares.take([0xfd00, 0, 0, 2, 0, 0, 0, 1].into()).is_some());
        drop(taken);
        assert!(shares.take(address(3)).is_some() && shares.taken.borrow().by_client.is_empty());
    }
}
