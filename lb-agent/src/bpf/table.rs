//! A mapped array: elements of a `BPF_F_MMAPABLE` map as plain memory, shared with the programs.
//! One of the two files of this crate's `bpf` that may use `unsafe`; it decides nothing.
//!
//! Programs read while we write, so every access is volatile, and whatever must be seen whole is one
//! aligned [`Word`].

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use bytemuck::Pod;

use super::sys::Access;

/// What a CPU stores at once.
pub trait Word: Pod {}

impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// The elements of one array map. `T` is the map's value.
#[derive(Debug)]
pub struct Table<T> {
    base: NonNull<u8>,
    bytes: usize,
    len: u32,
    access: Access,
    element: PhantomData<T>,
}

// SAFETY: shared memory of the whole process; nothing in it belongs to a thread.
unsafe impl<T: Send> Send for Table<T> {}

impl<T: Pod> Table<T> {
    /// The kernel rounds elements up to 8 bytes (kernel/bpf/arraymap.c, `array_map_alloc`).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps an array of `len` elements whose values are `T`; the caller has compared the layout.
    pub fn new(map: BorrowedFd<'_>, len: u32, access: Access) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 8) };
        let bytes = Self::STRIDE * len as usize;
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, bytes, len, access, element: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// An element; `None` past the end.
    pub fn get(&self, index: u32) -> Option<T> {
        let element = self.element(index)?;
        // SAFETY: inside the mapping and aligned (elements start at multiples of 8); any bytes are a
        // value of a Pod.
        Some(unsafe { element.cast::<T>().as_ptr().read_volatile() })
    }

    /// Writes an element; `false` past the end. Not at once: readers must not know the element yet.
    pub fn set(&mut self, index: u32, value: &T) -> bool {
        let Some(element) = self.writable(index) else { return false };
        // SAFETY: inside the mapping, aligned, writable.
        unsafe { element.cast::<T>().as_ptr().write_volatile(*value) };
        true
    }

    /// A word of an element, `offset` bytes from its start, read at once.
    pub fn word<W: Word>(&self, index: u32, offset: usize) -> Option<W> {
        let word = Self::place::<W>(self.element(index)?, offset)?;
        // SAFETY: inside the element and aligned (`place`).
        Some(unsafe { word.as_ptr().read_volatile() })
    }

    /// Writes a word of an element at once, and after everything written before; `false` past the
    /// end.
    pub fn set_word<W: Word>(&mut self, index: u32, offset: usize, value: W) -> bool {
        let Some(word) = self.writable(index).and_then(|element| Self::place::<W>(element, offset))
        else {
            return false;
        };
        // What the word leads to must be visible first; readers follow it by data dependency.
        fence(Ordering::Release);
        // SAFETY: inside the element, aligned (`place`), writable.
        unsafe { word.as_ptr().write_volatile(value) };
        true
    }

    fn element(&self, index: u32) -> Option<NonNull<u8>> {
        if index >= self.len {
            return None;
        }
        // SAFETY: `index < len`, so the sum stays inside the mapping.
        Some(unsafe { self.base.add(Self::STRIDE * index as usize) })
    }

    fn writable(&self, index: u32) -> Option<NonNull<u8>> {
        match self.access {
            Access::Read => None,
            Access::ReadWrite => self.element(index),
        }
    }

    fn place<W: Word>(element: NonNull<u8>, offset: usize) -> Option<NonNull<W>> {
        let fits =
            offset.is_multiple_of(size_of::<W>()) && offset + size_of::<W>() <= size_of::<T>();
        // SAFETY: inside the element, as just checked.
        fits.then(|| unsafe { element.add(offset) }.cast())
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping; every access goes through `self`, which ends here.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
