//! Bytes that many owners share, files mapped into memory, and large zeroed buffers: every mapping
//! of the project is made here.

use memmap2::{Mmap, MmapMut};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

/// A range of bytes that never change, with a share in their owner; a clone costs a counter.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of this range, of the same owner.
    ///
    /// # Panics
    /// If the range reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "bytes {range:?} of {}",
            self.len()
        );
        Bytes {
            owner: Arc::clone(&self.owner),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes {
            owner: Arc::new(bytes),
            range,
        }
    }
}

impl From<MappedFile> for Bytes {
    fn from(file: MappedFile) -> Bytes {
        let range = 0..file.map.len();
        Bytes {
            owner: Arc::new(file),
            range,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

/// A file mapped to be read: pages come from disk when they are first touched, and may be dropped
/// again under memory pressure.
///
/// # Hazard
/// The file must not change while it is mapped. If another process shortens it, touching a page
/// beyond its new end ends this process with a line of explanation and exit code 3; if another
/// process writes to it, the values change under the reader. Whoever cannot rule that out reads
/// the file instead of mapping it.
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole of an open file, which may be closed then.
    pub fn new(file: &File) -> io::Result<MappedFile> {
        #[cfg(unix)]
        stop_cleanly_on_lost_pages();
        // SAFETY: nothing in this process writes to the file, and the type's documentation hands
        // the hazard of other processes to the caller.
        let map = unsafe { Mmap::map(file)? };
        Ok(MappedFile { map })
    }
}

/// Makes SIGBUS, which the system sends for a page that its file no longer has, a message and exit
/// code 3 instead of a silent death. Set once, when the first file is mapped.
#[cfg(unix)]
fn stop_cleanly_on_lost_pages() {
    extern "C" fn explain(_: libc::c_int) {
        const LINE: &[u8] = concat!(
            "bruchteil: error: a mapped model file was shortened or became unreadable\n",
            "bruchteil:   help: leave it alone while it is open, or use --load read\n"
        )
        .as_bytes();
        // SAFETY: both calls may be made in a signal handler, and the line is static.
        unsafe {
            libc::write(2, LINE.as_ptr().cast(), LINE.len());
            libc::_exit(3)
        }
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let handler = explain as extern "C" fn(libc::c_int);
        // SAFETY: the handler makes no calls but those that a handler may make.
        unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    });
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// From this size on a buffer asks for huge pages, which spare a large weight most of its page
/// faults when it is filled and of its address translations when it is read.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed 32-bit lanes, or bytes in them; pages of a large buffer exist only once they are written.
pub(crate) enum LaneBuffer {
    Heap(Vec<u32>),
    /// A private mapping and the number of lanes in it.
    Pages(MmapMut, usize),
}

impl LaneBuffer {
    pub fn zeroed(lanes: usize) -> LaneBuffer {
        let bytes = lanes.saturating_mul(size_of::<u32>());
        if bytes < HUGE_PAGE {
            return LaneBuffer::Heap(vec![0; lanes]);
        }
        match MmapMut::map_anon(bytes) {
            Ok(map) => {
                // Advice that the kernel does not take costs only speed.
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                LaneBuffer::Pages(map, lanes)
            }
            // The allocator reports the lack of memory as it does everywhere else.
            Err(_) => LaneBuffer::Heap(vec![0; lanes]),
        }
    }

    /// The lanes as bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let lanes: &mut [u32] = self;
        let (start, bytes) = (lanes.as_mut_ptr(), size_of_val(lanes));
        // SAFETY: the same memory under the same borrow, and any bits are bytes and a u32.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes) }
    }
}

impl AsRef<[u8]> for LaneBuffer {
    fn as_ref(&self) -> &[u8] {
        let lanes: &[u32] = self;
        // SAFETY: the same memory under the same borrow, and any bits are bytes.
        unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), size_of_val(lanes)) }
    }
}

impl From<LaneBuffer> for Bytes {
    fn from(lanes: LaneBuffer) -> Bytes {
        let range = 0..size_of_val(&*lanes);
        Bytes {
            owner: Arc::new(lanes),
            range,
        }
    }
}

impl Deref for LaneBuffer {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            LaneBuffer::Heap(lanes) => lanes,
            // SAFETY: a mapping begins on a page, holds this many lanes, and any bits are a u32.
            LaneBuffer::Pages(map, lanes) => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast(), *lanes)
            },
        }
    }
}

impl DerefMut for LaneBuffer {
    fn deref_mut(&mut self) -> &mut [u32] {
        match self {
            LaneBuffer::Heap(lanes) => lanes,
            // SAFETY: as above, and the mapping is borrowed for writing.
            LaneBuffer::Pages(map, lanes) => unsafe {
                std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), *lanes)
            },
        }
    }
}

impl Clone for LaneBuffer {
    fn clone(&self) -> LaneBuffer {
        let mut copy = LaneBuffer::zeroed(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl fmt::Debug for LaneBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneBuffer({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_is_the_bytes_it_names() {
        let bytes = Bytes::from((0..100u8).collect::<Vec<_>>());
        let inner = bytes.slice(10..60).slice(5..9);
        drop(bytes);
        assert_eq!(inner.as_slice(), [15, 16, 17, 18]);
        assert_eq!((inner.len(), inner.is_empty()), (4, false));
    }

    #[test]
    #[should_panic(expected = "bytes 1..5 of 4")]
    fn a_slice_beyond_the_end_is_refused() {
        Bytes::from(vec![0; 9]).slice(2..6).slice(1..5);
    }

    #[test]
    fn a_mapped_file_is_its_bytes() {
        let path = std::env::temp_dir().join(format!("mapped-file-{}", std::process::id()));
        std::fs::write(&path, b"0123456789").expect("the temporary folder takes a file");
        let file = File::open(&path).expect("the file was just written");
        let bytes = Bytes::from(MappedFile::new(&file).expect("a file can be mapped"));
        assert_eq!(bytes.slice(3..6).as_slice(), b"345");
        std::fs::remove_file(&path).expect("the file was just written");
    }

    #[test]
    fn large_and_small_buffers_begin_as_zeros_and_clone_by_value() {
        for lanes in [0, 7, HUGE_PAGE / 4 + 3] {
            let mut buffer = LaneBuffer::zeroed(lanes);
            assert!(buffer.len() == lanes && buffer.iter().all(|&x| x == 0));
            buffer.fill(3);
            let copy = buffer.clone();
            buffer.fill(4);
            assert!(copy.len() == lanes && copy.iter().all(|&x| x == 3));
            buffer.bytes_mut().fill(7);
            assert!(buffer.iter().all(|&x| x == 0x0707_0707));
            let bytes = Bytes::from(buffer);
            assert!(bytes.len() == 4 * lanes && bytes.as_slice().iter().all(|&x| x == 7));
        }
    }
}
