//! bpf(2) itself, as far as aya doesn't wrap it: batches, link updates, map-in-map, link details.
//! One of the two files of this crate's `bpf` that may use `unsafe`; it decides nothing.
//!
//! The attribute structs are the leading fields of `union bpf_attr` (include/uapi/linux/bpf.h); the
//! kernel takes what is missing at the end as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{
    bpf_attach_type, bpf_cmd, bpf_link_type, bpf_map_info, bpf_map_type, bpf_prog_info,
};
use bytemuck::{Pod, Zeroable};

/// What a descriptor of a pinned object may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look only.
    Read,
    /// Look and change.
    ReadWrite,
}

/// `BPF_MAP_*_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_MAP_*_BATCH`.
#[repr(C)]
struct Batch {
    input: u64,
    output: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct PinnedObject {
    path: u64,
    object: u32,
    flags: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct ObjectInfo {
    object: u32,
    length: u32,
    info: u64,
}

/// `BPF_MAP_CREATE`.
#[repr(C)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
}

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct NewLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `BPF_LINK_UPDATE` and `BPF_LINK_DETACH`.
#[repr(C)]
struct ChangedLink {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
}

/// `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct ProgramRun {
    program: u32,
    returned: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_output_size: u32,
    context: u64,
    context_output: u64,
}

/// The beginning of `struct bpf_link_info`; the union behind it starts at the next multiple of 8.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// cgroup: its id; XDP and TCX: the interface index in the first half.
    target: [u32; 2],
    /// cgroup and TCX: the attach type, at different places.
    rest: [u32; 2],
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The link's own id.
    pub id: u32,
    /// Id of its program.
    pub program: u32,
    /// What it is attached to; `None` when that is gone, or of a kind that isn't ours.
    pub target: Option<LinkTarget>,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// A cgroup, by its id: the inode number of its directory.
    Cgroup(u64),
    /// A device, by its index.
    Device(u32),
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Size of a key, bytes.
    pub key_size: u32,
    /// Size of a value, bytes.
    pub value_size: u32,
    /// Number of elements or entries.
    pub max_entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(value: &T) -> u64 {
    (&raw const *value).cast::<u8>() as u64
}

fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    (&raw mut *value).cast::<u8>() as u64
}

/// # Safety
/// Pointers inside of `attributes` must be valid for what `command` reads and writes through them.
unsafe fn bpf<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<i32> {
    loop {
        // SAFETY: `attributes` is a live struct of the given size; the rest is the caller's promise.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_long,
                &raw mut *attributes,
                size_of::<T>(),
            )
        };
        if result >= 0 {
            // Descriptors and zero: they fit.
            return Ok(result as i32);
        }
        let error = io::Error::last_os_error();
        // EAGAIN: the verifier was interrupted by a signal.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// # Safety
/// As [`bpf`]; moreover `command` must return a new descriptor.
unsafe fn bpf_fd<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: a new descriptor that nobody else has; bpf(2) makes them close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path holds a NUL byte"))
}

/// Opens a pinned map, program or link.
pub fn open_pin(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = match access {
        Access::Read => aya_obj::generated::BPF_F_RDONLY,
        Access::ReadWrite => 0,
    };
    let mut attributes = PinnedObject { path: path.as_ptr() as u64, object: 0, flags };
    // SAFETY: `path` is a live C string.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attributes) }
}

/// Pins a map, program or link.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = PinnedObject { path: path.as_ptr() as u64, object: raw(object), flags: 0 };
    // SAFETY: `path` is a live C string.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// # Safety
/// `T` must be as the kernel describes the kind of `object`, or its beginning.
unsafe fn info<T: Copy>(object: BorrowedFd<'_>, mut value: T) -> io::Result<T> {
    let mut attributes = ObjectInfo {
        object: raw(object),
        length: size_of::<T>() as u32,
        info: address_mut(&mut value),
    };
    // SAFETY: `info` points to `length` writable bytes.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(value)
}

/// What a map is like.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    // SAFETY: `bpf_map_info` is plain integers, for which zero is a value.
    let empty: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel's own struct for maps.
    let info = unsafe { info(map, empty) }?;
    Ok(MapInfo {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.map_flags,
    })
}

/// What a link is like.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: the beginning of the kernel's own struct for links.
    let info = unsafe { info(link, RawLinkInfo::default()) }?;
    let is = |kind: bpf_link_type| info.kind == kind as u32;
    let target = if is(bpf_link_type::BPF_LINK_TYPE_CGROUP) {
        // Zero once the cgroup is gone.
        Some(bytemuck::cast(info.target)).filter(|id| *id != 0).map(LinkTarget::Cgroup)
    } else if is(bpf_link_type::BPF_LINK_TYPE_XDP) || is(bpf_link_type::BPF_LINK_TYPE_TCX) {
        // Zero once the device is gone.
        Some(info.target[0]).filter(|index| *index != 0).map(LinkTarget::Device)
    } else {
        None
    };
    Ok(LinkInfo { id: info.id, program: info.program, target })
}

/// Opens the program with this id. Needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = id;
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes) }
}

/// Opens the map with this id. Needs CAP_SYS_ADMIN.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = id;
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attributes) }
}

/// Ids of the maps that a program uses; no more than fit, which are more than ours have.
pub fn program_maps(program: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    // SAFETY: `bpf_prog_info` is plain integers, for which zero is a value.
    let mut wanted: bpf_prog_info = unsafe { std::mem::zeroed() };
    wanted.nr_map_ids = ids.len() as u32;
    wanted.map_ids = address_mut(&mut ids);
    // SAFETY: the kernel's own struct for programs; `map_ids` has room for `nr_map_ids`.
    let info = unsafe { info(program, wanted) }?;
    Ok(ids.into_iter().take(info.nr_map_ids as usize).collect())
}

/// The value of the only element of an array, as bytes; `None` for other maps. Names of constants end
/// in `.rodata`.
pub fn constants(map: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    // SAFETY: `bpf_map_info` is plain integers, for which zero is a value.
    let empty: bpf_map_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel's own struct for maps.
    let info = unsafe { info(map, empty) }?;
    let name: Vec<u8> =
        info.name.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    let is_one = info.type_ == bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 && info.max_entries == 1;
    if !is_one || !name.ends_with(b".rodata") {
        return Ok(None);
    }
    let mut value = vec![0_u8; info.value_size as usize];
    let key = 0_u32;
    let mut attributes = Element {
        map: raw(map),
        pad: 0,
        key: address(&key),
        value: address_mut(value.as_mut_slice()),
        flags: 0,
    };
    // SAFETY: keys of arrays are 4 bytes; `value` is as long as the map's values.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) }?;
    Ok(Some(value))
}

/// `struct __sk_buff`: its size, and where it has the interface index (include/uapi/linux/bpf.h).
const SK_BUFF: usize = 192;
const SK_BUFF_IFINDEX: usize = 40;
/// Room for what a program may make of a frame.
const LARGEST_FRAME: usize = 4_096;

/// Runs a tc program once on a frame that comes in through, or leaves, `device` of this network
/// namespace: what it returns, and the frame as it left it.
pub fn run_program(
    program: BorrowedFd<'_>,
    device: u32,
    frame: &[u8],
) -> io::Result<(i32, Vec<u8>)> {
    let mut output = vec![0_u8; LARGEST_FRAME];
    let mut context = [0_u8; SK_BUFF];
    for (to, from) in context.iter_mut().skip(SK_BUFF_IFINDEX).zip(device.to_ne_bytes()) {
        *to = from;
    }
    let mut attributes = ProgramRun {
        program: raw(program),
        returned: 0,
        input_size: frame.len() as u32,
        output_size: output.len() as u32,
        input: address(frame),
        output: address_mut(output.as_mut_slice()),
        repeat: 1,
        duration: 0,
        context_size: context.len() as u32,
        context_output_size: 0,
        context: address(&context),
        context_output: 0,
    };
    // SAFETY: every pointer is to a live buffer of the size beside it.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes) }?;
    output.truncate(attributes.output_size as usize);
    Ok((attributes.returned.cast_signed(), output))
}

/// Attaches a program by a new link.
pub fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attributes =
        NewLink { program: raw(program), target, attach_type: attach_type as u32, flags };
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }
}

/// Attaches a program to a cgroup by a new link. Flags must be 0: links of several owners live side
/// by side without any (kernel/bpf/cgroup.c, `cgroup_bpf_link_attach`).
pub fn create_cgroup_link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    create_link(program, raw(cgroup), attach_type, 0)
}

/// Replaces the program of a link; packets see the old one or the new one, never none.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes =
        ChangedLink { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Detaches a link, whoever else holds it.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = raw(link);
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// Ids of the programs at a place, in the order in which they run: of a cgroup by its descriptor, those of
/// the cgroups above it too; of a device by its index.
pub fn programs_at(
    cgroup: Option<BorrowedFd<'_>>,
    device: u32,
    attach_type: bpf_attach_type,
) -> io::Result<Vec<u32>> {
    // More than the kernel lets anybody attach to a cgroup (BPF_CGROUP_MAX_PROGS) or a device
    // (BPF_MPROG_MAX).
    let mut programs = [0_u32; 256];
    let flags = cgroup.map_or(0, |_| aya_obj::generated::BPF_F_QUERY_EFFECTIVE);
    let mut attributes = Query {
        target: cgroup.map_or(device, raw),
        attach_type: attach_type as u32,
        flags,
        attach_flags: 0,
        programs: address_mut(&mut programs),
        count: programs.len() as u32,
        pad: 0,
    };
    // SAFETY: `programs` has room for `count` ids.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes) }?;
    Ok(programs.into_iter().take(attributes.count as usize).collect())
}

/// Makes an array of one `u32`.
pub fn create_tiny_array() -> io::Result<OwnedFd> {
    create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 0)
}

/// Makes an array of one map that is like `inner`.
pub fn create_array_of_maps(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, raw(inner))
}

fn create_map(kind: bpf_map_type, inner: u32) -> io::Result<OwnedFd> {
    let mut attributes =
        NewMap { kind: kind as u32, key_size: 4, value_size: 4, max_entries: 1, flags: 0, inner };
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attributes) }
}

/// Puts a map into the only place of an array of maps.
pub fn put_map(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: keys and values of arrays of maps are 4 bytes in bpf(2).
    unsafe { update(outer, &0_u32, &raw(inner)) }
}

/// Copies the value of an entry out; `None` when there is none.
///
/// # Safety
/// `K` and `V` must have the sizes of the map's keys and values; the map must not be per-CPU.
pub unsafe fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let mut attributes = Element {
        map: raw(map),
        pad: 0,
        key: address(key),
        value: address_mut(&mut value),
        flags: 0,
    };
    // SAFETY: both pointers are to live values, of the right size as the caller promises.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies the values of an entry of a per-CPU map out, one for each CPU that may be there; whether there
/// is one.
///
/// # Safety
/// `K` and `V` must have the sizes of the map's keys and values, that of the values a multiple of 8;
/// `values` must have room for every possible CPU.
pub unsafe fn lookup_cpus<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &mut [V],
) -> io::Result<bool> {
    // SAFETY: the caller's promise.
    unsafe { copy_cpus(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key, values) }
}

/// As [`lookup_cpus`], and removes the entry.
///
/// # Safety
/// As for [`lookup_cpus`].
pub unsafe fn take_cpus<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &mut [V],
) -> io::Result<bool> {
    // SAFETY: the caller's promise.
    unsafe { copy_cpus(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, values) }
}

/// # Safety
/// As for [`lookup_cpus`]; `command` must be one that copies values out.
unsafe fn copy_cpus<K: Pod, V: Pod>(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: &K,
    values: &mut [V],
) -> io::Result<bool> {
    let mut attributes =
        Element { map: raw(map), pad: 0, key: address(key), value: address_mut(values), flags: 0 };
    // SAFETY: the pointers are to live values, of the right size as the caller promises.
    match unsafe { bpf(command, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the values of an entry of a per-CPU map.
///
/// # Safety
/// As for [`lookup_cpus`].
pub unsafe fn update_cpus<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &[V],
) -> io::Result<()> {
    let mut attributes =
        Element { map: raw(map), pad: 0, key: address(key), value: address(values), flags: 0 };
    // SAFETY: the pointers are to live values, of the right size as the caller promises.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Writes an entry.
///
/// # Safety
/// `K` and `V` must have the sizes of the map's keys and values.
pub unsafe fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attributes =
        Element { map: raw(map), pad: 0, key: address(key), value: address(value), flags: 0 };
    // SAFETY: both pointers are to live values, of the right size as the caller promises.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Removes an entry.
///
/// # Safety
/// `K` must have the size of the map's keys.
pub unsafe fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attributes = Element { map: raw(map), pad: 0, key: address(key), value: 0, flags: 0 };
    // SAFETY: the pointer is to a live value, of the right size as the caller promises.
    unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// The key behind `key`, or the first one; `None` behind the last.
///
/// # Safety
/// `K` must have the size of the map's keys.
pub unsafe fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::zeroed();
    let mut attributes = Element {
        map: raw(map),
        pad: 0,
        key: key.map_or(0, address),
        // For this command: where the next key goes.
        value: address_mut(&mut next),
        flags: 0,
    };
    // SAFETY: both pointers are to live values, of the right size as the caller promises; no key at
    // all asks for the first.
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a dump goes on: the kernel's own bookmark, for hashes a bucket number.
#[derive(Clone, Copy, Debug)]
pub struct Cursor(u32);

/// What one call of [`lookup_batch`] brought.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// How many entries were written.
    pub count: usize,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Copies entries of a hash out. `Err(ENOSPC)` when a single bucket has more than fit.
///
/// # Safety
/// `K` must have the size of the map's keys; `values` must have room, for each of `keys`, for what
/// bpf(2) calls a value of this map.
pub unsafe fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    start: Option<Cursor>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Chunk> {
    let input = start.map(|cursor| cursor.0);
    let mut output = 0_u32;
    let mut attributes = Batch {
        input: input.as_ref().map_or(0, address),
        output: address_mut(&mut output),
        keys: address_mut(keys),
        values: address_mut(values),
        count: keys.len() as u32,
        map: raw(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the cursors are live locals of 4 bytes, which is what hashes use; the rest is the
    // caller's promise.
    let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
    let count = attributes.count as usize;
    match result {
        Ok(_) => Ok(Chunk { count, next: Some(Cursor(output)) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Chunk { count, next: None }),
        Err(error) => Err(error),
    }
}

/// Keys that [`count_entries`] asks for at a time; more when a bucket has more.
const COUNTED: usize = 4_096;

/// How many entries a hash has, as `info` describes it. Every key has `per_key` values: one, or in a
/// per-CPU hash as many as there may be CPUs. Copies the whole map out, 100,000 entries in 30 ms.
pub fn count_entries(map: BorrowedFd<'_>, info: &MapInfo, per_key: usize) -> io::Result<u64> {
    let key_size = info.key_size as usize;
    // Values of per-CPU maps are padded (kernel/bpf/hashtab.c).
    let value_size = (info.value_size as usize).next_multiple_of(8) * per_key;
    let (mut room, mut count, mut cursor) = (COUNTED, 0, None::<u32>);
    let mut keys = vec![0_u8; room * key_size];
    let mut values = vec![0_u8; room * value_size];
    loop {
        let mut output = 0_u32;
        let mut attributes = Batch {
            input: cursor.as_ref().map_or(0, address),
            output: address_mut(&mut output),
            keys: address_mut(keys.as_mut_slice()),
            values: address_mut(values.as_mut_slice()),
            count: room as u32,
            map: raw(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the cursors are live locals of 4 bytes, which is what hashes use; both buffers have
        // room for `room` keys and values of the sizes that the kernel itself has told.
        let result = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        match result {
            Ok(_) => {
                count += u64::from(attributes.count);
                cursor = Some(output);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(count + u64::from(attributes.count));
            }
            // A bucket with more entries than fit: once more from the same place.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                keys = vec![0; room * key_size];
                values = vec![0; room * value_size];
            }
            Err(error) => return Err(error),
        }
    }
}

/// Memory that the kernel reckons for a map, bytes: what is allocated now, since Linux 6.4; before, an
/// estimate from its sizes.
pub fn map_memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let details = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = details.lines().find_map(|line| line.strip_prefix("memlock:"));
    bytes.and_then(|bytes| bytes.trim().parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "fdinfo of the map has no line memlock")
    })
}

/// CLOCK_MONOTONIC, nanoseconds: the clock of the programs.
pub fn monotonic_nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live local; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
