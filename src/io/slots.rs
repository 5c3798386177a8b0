//! Requests under way, by small numbers that are used again.

/// Values that stay at their number until they are removed.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts a value at a free number, below the most values that there ever were.
    pub fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(value);
                slot
            }
            None => {
                self.slots.push(Some(value));
                self.slots.len() - 1
            }
        }
    }

    /// `None`: nothing is there (any more).
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Takes a value out; its number is free.
    pub fn remove(&mut self, slot: usize) -> Option<T> {
        let value = self.slots.get_mut(slot)?.take();
        self.free.extend(value.as_ref().map(|_| slot));
        value
    }

    /// Takes all values out, in the order of their numbers.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().flatten()
    }

    /// Number of values.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_once_they_are_free() {
        let mut slots = Slots::default();
        assert_eq!([slots.insert('a'), slots.insert('b'), slots.insert('c')], [0, 1, 2]);
        assert_eq!((slots.remove(1), slots.remove(1), slots.remove(9)), (Some('b'), None, None));
        assert!(slots.len() == 2 && slots.get_mut(1).is_none() && slots.get_mut(2) == Some(&mut 'c'));
        assert_eq!([slots.insert('d'), slots.insert('e')], [1, 3]);
        assert!(slots.take_all().eq(['a', 'd', 'c', 'e']) && slots.len() == 0);
        assert_eq!(slots.insert('f'), 0);
    }
}
