//! temp
pub struct AlignedBuffer(Vec<u8>);
impl AlignedBuffer {
    pub fn zeroed(n: usize) -> Self {
        Self(vec![0; n])
    }
}
impl std::ops::Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
impl std::ops::DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
