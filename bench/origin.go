package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
)

// originCommand is the hidden subcommand under which this program is the
// backend of the contenders instead of the bench.
const originCommand = "origin"

// origin is what every contender proxies to: small fast servers that answer the
// same whatever they are asked.
type origin struct {
	servers []originServer
	udp     *net.UDPConn // echoes
}

type originServer struct {
	service service
	ln      net.Listener
	serve   func(net.Conn) // returns when the connection is over
}

// newOrigin listens on loopback, on the ports from first on or, if that is 0, on
// any. Run serves them.
func newOrigin(first int) (*origin, error) {
	o := &origin{servers: []originServer{
		{service: serviceHTTP, serve: serveHTTP},
		{service: serviceEcho, serve: serveEcho},
		{service: serviceBlast, serve: serveBlast},
	}}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Go's default costs each connection a little
	port := func(i int) netip.AddrPort {
		if first == 0 {
			return loopback(0)
		}
		return loopback(first + i)
	}
	for i := range o.servers {
		ln, err := lc.Listen(context.Background(), "tcp4", port(i).String())
		if err != nil {
			o.close()
			return nil, fmt.Errorf("listen for %s: %w", o.servers[i].service, err)
		}
		o.servers[i].ln = ln
	}
	var err error
	if o.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(port(len(o.servers)))); err != nil {
		o.close()
		return nil, fmt.Errorf("listen for %s: %w", serviceUDP, err)
	}
	return o, nil
}

// addrs returns where each service listens.
func (o *origin) addrs() addressBook {
	m := addressBook{serviceUDP: o.udp.LocalAddr().(*net.UDPAddr).AddrPort()}
	for _, s := range o.servers {
		m[s.service] = s.ln.Addr().(*net.TCPAddr).AddrPort()
	}
	return m
}

func (o *origin) close() {
	for _, s := range o.servers {
		if s.ln != nil {
			s.ln.Close()
		}
	}
	if o.udp != nil {
		o.udp.Close()
	}
}

// run serves until ctx ends; it then cuts all connections and returns nil.
func (o *origin) run(ctx context.Context) error {
	var open sync.WaitGroup
	errs := make([]error, len(o.servers)+1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, o.close)()
	for i, s := range o.servers {
		open.Go(func() {
			defer cancel()
			errs[i] = s.accept(ctx, &open)
		})
	}
	open.Go(func() {
		defer cancel()
		errs[len(o.servers)] = o.echoDatagrams(ctx)
	})
	open.Wait()
	return errors.Join(errs...)
}

func (s originServer) accept(ctx context.Context, open *sync.WaitGroup) error {
	for {
		c, err := s.ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept for %s: %w", s.service, err)
		}
		open.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.serve(c)
		})
	}
}

// originMain is the subcommand, with newOrigin's argument: it prints the addresses as JSON and serves
// until stdin ends, as it does even when its parent is killed.
func originMain(first int, stdin io.Reader, stdout io.Writer) error {
	o, err := newOrigin(first)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(o.addrs()); err != nil {
		o.close()
		return fmt.Errorf("print addresses: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, stdin)
		cancel()
	}()
	return o.run(ctx)
}

// serveEcho sends back what it gets.
func serveEcho(c net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// echoDatagrams sends every datagram back to where it came from.
func (o *origin) echoDatagrams(ctx context.Context) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := o.udp.ReadFromUDPAddrPort(buf)
		if err == nil {
			_, err = o.udp.WriteToUDPAddrPort(buf[:n], from)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("echo datagrams: %w", err)
		}
	}
}

// serveBlast sends as fast as it is read from.
func serveBlast(c net.Conn) {
	buf := make([]byte, 256<<10)
	for {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// startOrigin runs the origin in a process of its own, as newOrigin says, and
// returns where it listens.
func startOrigin(dir string, first int) (*process, addressBook, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("start the origin: %w", err)
	}
	// The child holds the read end of stdin and sees its end when we are gone.
	in, hold, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("start the origin: %w", err)
	}
	defer in.Close()
	out, printed, err := os.Pipe()
	if err != nil {
		hold.Close()
		return nil, nil, fmt.Errorf("start the origin: %w", err)
	}
	defer out.Close()
	p, err := startProcess("origin", dir, in, printed, self, originCommand, strconv.Itoa(first))
	printed.Close()
	if err != nil {
		hold.Close()
		return nil, nil, err
	}
	go func() {
		<-p.done
		hold.Close()
	}()
	var addrs addressBook
	if err := json.NewDecoder(out).Decode(&addrs); err != nil {
		p.stop()
		return nil, nil, fmt.Errorf("read the origin's addresses: %w", err)
	}
	return p, addrs, nil
}
