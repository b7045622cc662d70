//! Dense numbers for names, so that worker-local state can lie in a vector.

use imbl::{OrdMap, Vector};

/// Numbers that are used again. They stay below the largest count of those that were taken at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    free: Vector<u32>,
    next: u32,
}

/// A name keeps its number as long as it has a user.
#[derive(Clone, Debug)]
pub(super) struct Slots<K: Ord + Clone> {
    used: OrdMap<K, Slot>,
    numbers: Numbers,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    users: u32,
}

impl<K: Ord + Clone> Default for Slots<K> {
    fn default() -> Self {
        Self { used: OrdMap::new(), numbers: Numbers::default() }
    }
}

impl Numbers {
    /// A number that nobody has.
    pub fn take(&mut self) -> u32 {
        self.free.pop_front().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Gives a number back.
    pub fn give(&mut self, number: u32) {
        self.free.push_back(number);
    }

    /// How many numbers there are, taken and free.
    #[cfg(test)]
    pub fn high_water(&self) -> u32 {
        self.next
    }
}

impl<K: Ord + Clone> Slots<K> {
    /// The name's number, for one more user.
    pub fn acquire(&mut self, key: &K) -> u32 {
        if let Some(slot) = self.used.get_mut(key) {
            slot.users += 1;
            return slot.number;
        }
        let number = self.numbers.take();
        self.used.insert(key.clone(), Slot { number, users: 1 });
        number
    }

    /// One user less.
    pub fn release(&mut self, key: &K) {
        if let Some(slot) = self.used.get_mut(key) {
            slot.users -= 1;
            let Slot { number, users } = *slot;
            if users == 0 {
                self.used.remove(key);
                self.numbers.give(number);
            }
        }
    }

    /// The number of a name that has users.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.used.get(key).map(|slot| slot.number)
    }
}
