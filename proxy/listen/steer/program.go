package steer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The kernel's side: a set of ports and the sockets that they go to.
const (
	numPorts     = 1 << 16
	numProtos    = 2
	bytesOfProto = numPorts / 8
	setSize      = (numProtos + 1) * bytesOfProto

	// aside is where a protocol would be, in the set: the UDP ports that have
	// a socket of their own at nowhere, which the program has to be told of.
	aside Proto = numProtos
	// maxAside bounds them.
	maxAside = 8192

	// Fields of struct bpf_sk_lookup.
	lookupProtocol  = 12
	lookupLocalPort = 60 // in the byte order of the machine

	skPass = 1 // go on with the socket that was chosen, if one was
	// replaceChoice (BPF_SK_LOOKUP_F_REPLACE) lets the program that was
	// attached last decide where several would: a new process takes over from
	// the one before it.
	replaceChoice = 1
)

// kernel is the program at work.
type kernel struct {
	link   *link.NetNsLink
	set    []byte    // the ports, shared with the kernel
	asides *ebpf.Map // sockets by the port whose bit is set as aside
}

// attach loads the program, with an empty set, and attaches it to the network
// namespace of the calling thread. It keeps two file descriptors open: the
// program holds the sockets and the set, the link holds the program, and
// asides takes sockets later.
func attach(sockets [numProtos]int) (*kernel, error) {
	set, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "sluice_ports", Type: ebpf.Array, KeySize: 4, ValueSize: setSize, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return nil, fmt.Errorf("make the set of ports: %w", err)
	}
	defer set.Close()
	targets, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "sluice_sockets", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: numProtos,
	})
	if err != nil {
		return nil, fmt.Errorf("make the map of sockets: %w", err)
	}
	defer targets.Close()
	for proto, fd := range sockets {
		if err := targets.Put(uint32(proto), uint64(fd)); err != nil {
			return nil, fmt.Errorf("put the %v socket into its map: %w", Proto(proto), err)
		}
	}
	asides, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "sluice_asides", Type: ebpf.SockHash, KeySize: 4, ValueSize: 8, MaxEntries: maxAside,
	})
	if err != nil {
		return nil, fmt.Errorf("make the map of sockets of single ports: %w", err)
	}
	k := &kernel{asides: asides}
	if err := k.attach(set, targets); err != nil {
		asides.Close()
		return nil, err
	}
	return k, nil
}

// attach loads the program for set, targets and k.asides, and attaches it.
func (k *kernel) attach(set, targets *ebpf.Map) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sluice_steer", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL",
		Instructions: instructions(set.FD(), targets.FD(), k.asides.FD()),
	})
	if err != nil {
		return fmt.Errorf("load the program: %w", err)
	}
	defer program.Close()
	if k.set, err = unix.Mmap(set.FD(), 0, setSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the set of ports into memory: %w", err)
	}
	if k.link, err = attachHere(program); err != nil {
		unix.Munmap(k.set)
		return fmt.Errorf("attach the program to the network namespace: %w", err)
	}
	return nil
}

func attachHere(program *ebpf.Program) (*link.NetNsLink, error) {
	runtime.LockOSThread() // threads may be in different namespaces
	defer runtime.UnlockOSThread()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return link.AttachNetNs(int(ns.Fd()), program)
}

// instructions returns the program: if the bit of the packet's protocol and
// port is set, choose that protocol's socket, but for a UDP port that has one
// aside, that; whatever happens, let the lookup go on.
func instructions(set, sockets, asides int) asm.Instructions {
	const (
		tcp      = "tcp"
		udp      = "udp"
		notAside = "not aside"
		common   = "common"
		choose   = "choose"
		end      = "end"
	)
	// lookup has R0 be the socket that the map has for the word at -4, or nil.
	lookup := func(sockets int) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, sockets),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
		}
	}
	return slices.Concat(asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // the context
		asm.LoadMem(asm.R7, asm.R6, lookupLocalPort, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, lookupProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, unix.IPPROTO_TCP, tcp),
		asm.JEq.Imm(asm.R1, unix.IPPROTO_UDP, udp),
		asm.Ja.Label(end),

		asm.StoreImm(asm.RFP, -4, int64(TCP), asm.Word).WithSymbol(tcp),
	}, testPort(set, TCP), asm.Instructions{
		asm.JEq.Imm(asm.R3, 0, end),
		asm.Ja.Label(common),

		asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word).WithSymbol(udp),
	}, testPort(set, aside), asm.Instructions{
		asm.JEq.Imm(asm.R3, 0, notAside),
	}, lookup(asides), asm.Instructions{
		asm.JNE.Imm(asm.R0, 0, choose),

		asm.StoreImm(asm.RFP, -4, int64(UDP), asm.Word).WithSymbol(notAside),
	}, testPort(set, UDP), asm.Instructions{
		asm.JEq.Imm(asm.R3, 0, end),

		asm.Mov.Imm(asm.R0, 0).WithSymbol(common),
	}, lookup(sockets), asm.Instructions{
		asm.JEq.Imm(asm.R0, 0, end),

		asm.Mov.Reg(asm.R8, asm.R0).WithSymbol(choose),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Imm(asm.R3, replaceChoice),
		asm.FnSkAssign.Call(), // refuses IPv6 for a socket of IPv4 alone
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.FnSkRelease.Call(),

		asm.Mov.Imm(asm.R0, skPass).WithSymbol(end),
		asm.Return(),
	})
}

// testPort has R3 be the bit of the port in R7: of the byte at port>>3, bit
// port&7. The mask is for the verifier.
func testPort(set int, proto Proto) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapValue(asm.R2, set, uint32(proto)*bytesOfProto),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.RSh.Imm(asm.R3, 3),
		asm.And.Imm(asm.R3, bytesOfProto-1),
		asm.Add.Reg(asm.R2, asm.R3),
		asm.LoadMem(asm.R3, asm.R2, 0, asm.Byte),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.And.Imm(asm.R1, 7),
		asm.RSh.Reg(asm.R3, asm.R1),
		asm.And.Imm(asm.R3, 1),
	}
}

// word returns the 32 bits of the set that hold those of port, and which of
// them is its own. The program reads single bytes; bit 0 of a byte is the first
// port, so the words are read as little-endian.
func (k *kernel) word(proto Proto, port int) (word *uint32, bit uint32) {
	at := int(proto)*bytesOfProto + port/32*4
	bit = 1 << (port % 32)
	if bigEndian {
		bit = 1 << (24 - port%32/8*8 + port%8)
	}
	return (*uint32)(unsafe.Pointer(&k.set[at])), bit
}

var bigEndian = func() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 0
}()

// detach takes the program out of the way and forgets the set.
func (k *kernel) detach() error {
	clear(k.set)
	err := k.link.Close()
	return errors.Join(err, unix.Munmap(k.set), k.asides.Close())
}
