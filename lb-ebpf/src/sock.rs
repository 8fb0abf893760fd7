//! cgroup hooks: sockets of the node and its pods name a Service and reach an endpoint.

use core::ffi::c_void;
use core::marker::PhantomData;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::abi::{
    Address, BackendIndex, ClientAddresses, ConfigFlags, Event, EventHook, FlowKey, PeerKey,
    PeerValue, ReverseKey, ReverseValue,
};
use lb_common::bytes::Be16;
use lb_common::env::Tables as _;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketEnv, SocketVerdict};
use lb_common::lb::takeover;
use lb_common::wire::ip;

use crate::env::Kernel;
use crate::maps::{self, FamilyMaps};
use crate::monitor;

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with the error set before.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
/// `IPPROTO_MPTCP`: TCP on the wire.
const MPTCP: u32 = 262;
/// Address families of sockets.
const INET: u32 = V4::AF as u32;
const INET6: u32 = V6::AF as u32;

/// The context of one of these hooks.
struct Call<S, C> {
    inner: SockAddrContext,
    kind: PhantomData<(S, C)>,
}

type Socket<S, C> = Kernel<Call<S, C>>;

/// The families' halves of `struct bpf_sock_addr`, and of `struct bpf_sock`.
trait SocketFamily {
    fn address(context: *mut bpf_sock_addr) -> Address;
    fn set_address(context: *mut bpf_sock_addr, address: Address);
    /// The source that a datagram will have, as far as the application or the socket says; for
    /// `sendmsg` alone.
    fn message_source(context: *mut bpf_sock_addr) -> Address;
    /// The address that a socket is bound to.
    fn socket_source(socket: *mut bpf_sock) -> Address;
}

/// What the calls differ in.
trait CallKind {
    /// What it is called in events.
    const HOOK: EventHook;
    /// Where the packets will come from, as far as application or socket say.
    fn source<S: SocketFamily>(context: *mut bpf_sock_addr) -> Address;
}

/// `sendmsg`.
enum Message {}
/// Every other call; of these `connect` alone decides anything.
enum Plain {}

impl CallKind for Message {
    const HOOK: EventHook = EventHook::SendMessage;

    #[inline(always)]
    fn source<S: SocketFamily>(context: *mut bpf_sock_addr) -> Address {
        S::message_source(context)
    }
}

impl CallKind for Plain {
    const HOOK: EventHook = EventHook::Connect;

    #[inline(always)]
    fn source<S: SocketFamily>(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the context is valid, and always has its socket.
        S::socket_source(unsafe {
            core::ptr::read_volatile(&raw const (*context).__bindgen_anon_1.sk)
        })
    }
}

impl<S, C> Call<S, C> {
    #[inline(always)]
    fn env(context: SockAddrContext) -> Socket<S, C> {
        Kernel::new(Self { inner: context, kind: PhantomData })
    }
}

impl<S, C> EbpfContext for Call<S, C> {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.inner.as_ptr()
    }
}

enum Inet {}
enum Inet6 {}

impl SocketFamily for Inet {
    #[inline(always)]
    fn address(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the context is valid; its fields are read at their own width.
        Address::mapped(unsafe { core::ptr::read_volatile(&raw const (*context).user_ip4) })
    }

    #[inline(always)]
    fn set_address(context: *mut bpf_sock_addr, address: Address) {
        let [_, _, _, v4] = address.words();
        // SAFETY: as above, a field that these hooks may write.
        unsafe { core::ptr::write_volatile(&raw mut (*context).user_ip4, v4) }
    }

    #[inline(always)]
    fn message_source(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the context is valid; its fields are read at their own width.
        Address::mapped(unsafe { core::ptr::read_volatile(&raw const (*context).msg_src_ip4) })
    }

    #[inline(always)]
    fn socket_source(socket: *mut bpf_sock) -> Address {
        // SAFETY: the socket of a context; its fields are read at their own width.
        Address::mapped(unsafe { core::ptr::read_volatile(&raw const (*socket).src_ip4) })
    }
}

impl SocketFamily for Inet6 {
    #[inline(always)]
    fn address(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the context is valid; its fields are read at their own width.
        unsafe {
            let word = |i: usize| core::ptr::read_volatile(&raw const (*context).user_ip6[i]);
            Address::from_words([word(0), word(1), word(2), word(3)])
        }
    }

    #[inline(always)]
    fn set_address(context: *mut bpf_sock_addr, address: Address) {
        let [a, b, c, d] = address.words();
        // SAFETY: as above, fields that these hooks may write.
        unsafe {
            core::ptr::write_volatile(&raw mut (*context).user_ip6[0], a);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[1], b);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[2], c);
            core::ptr::write_volatile(&raw mut (*context).user_ip6[3], d);
        }
    }

    #[inline(always)]
    fn message_source(context: *mut bpf_sock_addr) -> Address {
        // SAFETY: the context is valid; its fields are read at their own width.
        unsafe {
            let word = |i: usize| core::ptr::read_volatile(&raw const (*context).msg_src_ip6[i]);
            Address::from_words([word(0), word(1), word(2), word(3)])
        }
    }

    #[inline(always)]
    fn socket_source(socket: *mut bpf_sock) -> Address {
        // SAFETY: the socket of a context; its fields are read at their own width.
        unsafe {
            let word = |i: usize| core::ptr::read_volatile(&raw const (*socket).src_ip6[i]);
            Address::from_words([word(0), word(1), word(2), word(3)])
        }
    }
}

/// `connect` on AF_INET.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    connect::<Inet>(context)
}

/// `connect` on AF_INET6, mapped addresses included.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    connect::<Inet6>(context)
}

/// `sendmsg` with an address on AF_INET (also AF_INET6 sockets with a mapped address).
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    sendmsg::<Inet>(context)
}

/// `sendmsg` with an address on AF_INET6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    sendmsg::<Inet6>(context)
}

/// `recvmsg` on AF_INET.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    reveal::<Inet>(context)
}

/// `recvmsg` on AF_INET6, mapped addresses included.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    reveal::<Inet6>(context)
}

/// `getpeername` on AF_INET.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    reveal::<Inet>(context)
}

/// `getpeername` on AF_INET6, mapped addresses included.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    reveal::<Inet6>(context)
}

/// The last `close` of a socket. Many sockets live for one question or request: what REVERSE remembers
/// of these must not push out those that live for days.
#[cgroup_sock(sock_release)]
pub fn release(context: SockContext) -> i32 {
    if let Some((address, port)) = peer(context.sock) {
        // SAFETY: the context is valid.
        let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
        // Not there is as good.
        let _ = maps::REVERSE.remove(ReverseKey { cookie, address, port, pad: [0; 6] });
    }
    ALLOW
}

/// Where a socket is connected.
#[inline(always)]
fn peer(sock: *const bpf_sock) -> Option<(Address, Be16)> {
    if sock.is_null() {
        return None;
    }
    // SAFETY: a valid socket; its fields are read at their own width.
    unsafe {
        let port = Be16::from_raw(core::ptr::read_volatile(&raw const (*sock).dst_port));
        // Both, whatever the family: the compiler would share the last load of two branches, at an
        // offset in a register, which the verifier refuses.
        let v4 = core::ptr::read_volatile(&raw const (*sock).dst_ip4);
        let word = |i: usize| core::ptr::read_volatile(&raw const (*sock).dst_ip6[i]);
        let v6 = [word(0), word(1), word(2), word(3)];
        let address = match core::ptr::read_volatile(&raw const (*sock).family) {
            INET => Address::mapped(v4),
            INET6 => Address::from_words(v6),
            _ => return None,
        };
        (port.raw() != 0).then_some((address, port))
    }
}

#[inline(always)]
fn connect<S: SocketFamily>(context: SockAddrContext) -> i32 {
    let Some(destination) = destination::<S>(context.sock_addr) else {
        return ALLOW;
    };
    let mut env = Call::<S, Plain>::env(context);
    let verdict = socket::connect(&mut env, &destination);
    carry_out(&env, verdict)
}

#[inline(always)]
fn sendmsg<S: SocketFamily>(context: SockAddrContext) -> i32 {
    let Some(destination) = destination::<S>(context.sock_addr) else {
        return ALLOW;
    };
    let mut env = Call::<S, Message>::env(context);
    let verdict = socket::sendmsg(&mut env, &destination);
    carry_out(&env, verdict)
}

/// Shows the application the frontend instead of the backend.
#[inline(always)]
fn reveal<S: SocketFamily>(context: SockAddrContext) -> i32 {
    let (address, port) = (S::address(context.sock_addr), user_port(context.sock_addr));
    let env = Call::<S, Plain>::env(context);
    if let Some((address, port)) = socket::reveal(&env, address, port) {
        S::set_address(env.context.inner.sock_addr, address);
        set_user_port(env.context.inner.sock_addr, port);
    }
    ALLOW
}

#[inline(always)]
fn carry_out<S: SocketFamily, C>(env: &Socket<S, C>, verdict: SocketVerdict) -> i32 {
    match verdict {
        SocketVerdict::Pass => ALLOW,
        SocketVerdict::Translate(address, port) => {
            S::set_address(env.context.inner.sock_addr, address);
            set_user_port(env.context.inner.sock_addr, port);
            ALLOW
        }
        SocketVerdict::Discard => {
            let context = env.context.inner.sock_addr;
            S::set_address(context, S::address(context).discard());
            ALLOW
        }
        SocketVerdict::Refuse => fail(ECONNREFUSED),
        SocketVerdict::Unreachable => fail(EHOSTUNREACH),
    }
}

#[inline(always)]
fn fail(errno: i32) -> i32 {
    // SAFETY: a plain number.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

/// What the application named; `None` for protocols that have no socket hook of ours.
#[inline(always)]
fn destination<S: SocketFamily>(context: *mut bpf_sock_addr) -> Option<Destination> {
    // SAFETY: the context is valid.
    let protocol = match unsafe { core::ptr::read_volatile(&raw const (*context).protocol) } {
        MPTCP => ip::TCP,
        other if other == ip::TCP as u32 => ip::TCP,
        other if other == ip::UDP as u32 => ip::UDP,
        _ => return None,
    };
    Some(Destination { address: S::address(context), port: user_port(context), protocol })
}

#[inline(always)]
fn user_port(context: *mut bpf_sock_addr) -> Be16 {
    // SAFETY: the context is valid. The port is the low half, network byte order.
    Be16::from_raw(unsafe { core::ptr::read_volatile(&raw const (*context).user_port) } as u16)
}

#[inline(always)]
fn set_user_port(context: *mut bpf_sock_addr, port: Be16) {
    // SAFETY: a field that these hooks may write.
    unsafe { core::ptr::write_volatile(&raw mut (*context).user_port, port.raw() as u32) }
}

#[inline(always)]
fn foreign_flow<F: FamilyMaps>(key: &FlowKey<F>, now: u32) -> Option<(BackendIndex, u32)> {
    let flow = F::flows().get_ptr_mut(key)?;
    // SAFETY: the kernel keeps the element's memory until the program ends; a racing write costs no more
    // than a tick.
    takeover::leads(unsafe { &mut *flow }, now)
}

impl<S: SocketFamily, C: CallKind> SocketEnv for Socket<S, C> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.context.as_ptr()) }
    }

    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }

    #[inline(always)]
    fn in_host_namespace(&self) -> bool {
        self.namespace() == maps::config().host_netns_cookie
    }

    #[inline(always)]
    fn serves_pods(&self) -> bool {
        maps::config().flags & ConfigFlags::NODE_SOCKETS_ONLY == 0
    }

    #[inline(always)]
    fn bound(&self) -> Address {
        C::source::<S>(self.context.inner.sock_addr)
    }

    #[inline(always)]
    fn local_port(&self) -> Be16 {
        // SAFETY: the context is valid, and always has its socket; its fields are read at their own width.
        let port = unsafe {
            let socket = (*self.context.inner.sock_addr).__bindgen_anon_1.sk;
            core::ptr::read_volatile(&raw const (*socket).src_port)
        };
        // Host byte order, unlike the others.
        Be16::new(port as u16)
    }

    #[inline(always)]
    fn foreign_flow(
        &mut self,
        from: (Address, Be16),
        destination: &Destination,
    ) -> Option<(BackendIndex, u32)> {
        let now = self.now();
        if destination.address.is_v4() {
            foreign_flow::<V4>(&takeover::socket_key(from, destination), now)
        } else {
            foreign_flow::<V6>(&takeover::socket_key(from, destination), now)
        }
    }

    #[inline(always)]
    fn client_addresses(&self, namespace: u64) -> Option<ClientAddresses> {
        // SAFETY: copied at once; the agent replaces values whole.
        unsafe { maps::CLIENTS.get(namespace) }.copied()
    }

    #[inline(always)]
    fn connected_to(&self) -> Option<(Address, Be16)> {
        // SAFETY: the context is valid, and so is its socket.
        peer(unsafe { (*self.context.inner.sock_addr).__bindgen_anon_1.sk })
    }

    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<PeerValue> {
        // SAFETY: copied at once.
        unsafe { maps::PEERS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_peer(&mut self, key: &PeerKey, value: &PeerValue) {
        // Without it the next datagram chooses anew.
        let _ = maps::PEERS.insert(key, value, BPF_ANY.into());
    }

    #[inline(always)]
    fn reverse(&self, key: &ReverseKey) -> Option<ReverseValue> {
        // SAFETY: copied at once.
        unsafe { maps::REVERSE.get(key) }.copied()
    }

    #[inline(always)]
    fn set_reverse(&mut self, key: &ReverseKey, value: &ReverseValue) {
        // Without it the application sees the backend's address.
        let _ = maps::REVERSE.insert(key, value, BPF_ANY.into());
    }

    #[inline(always)]
    fn clear_reverse(&mut self, key: &ReverseKey) {
        // Not there is as good.
        let _ = maps::REVERSE.remove(key);
    }

    #[inline(always)]
    fn report(&self, event: &mut Event) {
        event.hook = C::HOOK as u8;
        monitor::socket_event(event);
    }
}
