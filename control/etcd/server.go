package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
)

// ServerConfig describes the embedded etcd of a node that has no other. Dir
// and ListenClient are required.
type ServerConfig struct {
	Dir          string // where its data lives; created with mode 0700. One process at a time
	Name         string // of the member, its node's; empty: sluice
	ListenClient string // loopback host:port for clients, etcdctl among them; port 0: any free one
	// Cluster makes it one member of several; nil: it is the only one.
	Cluster *Cluster

	QuotaBytes    int64        // size at which etcd refuses writes; 0: 2 GiB, the most that is advised is 8 GiB
	UnsafeNoFsync bool         // do not wait for the disk: a power cut loses data. For tests
	Logger        *slog.Logger // for etcd's own warnings and errors; nil: they are dropped
}

const (
	defaultQuota = 2 << 30

	// Enough for an answer under way. Watches never end by themselves, and
	// would make etcd wait for seven seconds.
	closeGrace = 200 * time.Millisecond

	// closeLimit bounds Close if etcd has got stuck, such as on a dead disk. One
	// that leads others, and hands over to one that is stopped too, waits for ten
	// seconds.
	closeLimit = 20 * time.Second
)

// ErrStuck is in errors of an embedded etcd that could not be stopped, or not
// be started and undone: what is left of it keeps its directory, and only a new
// process can try again.
var ErrStuck = errors.New("parts of it still run")

// ErrRemoved is in errors of an embedded etcd that the cluster has removed from
// among its members: its data is of no use any more, and it can only join anew.
var ErrRemoved = errors.New("the cluster has removed this member")

// Server is a running embedded etcd. Writes are on disk when they return.
type Server struct {
	name string // of the member
	etcd *embed.Etcd
	lock *dirLock
	log  *bridge

	mu   sync.Mutex // guards grpc
	grpc []*grpc.Server

	closing sync.Once
	caring  sync.WaitGroup // keepSpace
	rest    context.CancelFunc
	closed  chan struct{} // closed when Close is called
}

// StartServer starts etcd and returns once it answers, or with an error that
// says what to do, in particular if the port is taken or the directory in use.
// If ctx ends before etcd is ready, that is an error too. Close the Server.
func StartServer(ctx context.Context, cfg ServerConfig) (*Server, error) {
	if err := checkLoopback(cfg.ListenClient); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create etcd's data directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{name: cfg.Name, lock: lock, log: newBridge(cfg.Logger), closed: make(chan struct{})}
	if err := s.start(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	quota := cfg.QuotaBytes
	if quota == 0 {
		quota = defaultQuota
	}
	var care context.Context
	care, s.rest = context.WithCancel(context.WithoutCancel(ctx))
	s.caring.Go(func() { s.keepSpace(care, quota) })
	return s, nil
}

// start runs embed.StartEtcd, in a goroutine because it cannot be told to stop
// and because it ends its goroutine where it finds its data damaged.
func (s *Server) start(ctx context.Context, cfg ServerConfig) error {
	result := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				result <- fmt.Errorf("start embedded etcd in %s: its data cannot be read: %v (%w)", cfg.Dir, r, ErrStuck)
			}
		}()
		ec, err := s.embedConfig(cfg)
		if err != nil {
			result <- errors.Join(err, s.lock.release())
			return
		}
		e, err := embed.StartEtcd(ec)
		if err != nil {
			s.log.silence()
			if s.log.reason() != nil { // it has stopped before it was up
				err = fmt.Errorf("start %w", s.stoppedError())
			} else {
				err = startError(cfg, err)
			}
			result <- errors.Join(err, s.lock.release())
			return
		}
		s.etcd = e
		result <- nil
	}()
	select {
	case err := <-result:
		return err
	case err := <-s.log.failed:
		// How much of it runs is unknown, so the lock stays.
		return fmt.Errorf("start embedded etcd in %s: %w (%w)", cfg.Dir, err, ErrStuck)
	case <-ctx.Done():
		go func() { // when it does come up, nobody wants it any more
			if <-result == nil {
				_ = s.Close()
			}
		}()
		return fmt.Errorf("start embedded etcd in %s: not up in time: %w", cfg.Dir, ctx.Err())
	}
}

// checkLoopback refuses addresses that others can reach: this server asks
// nobody for a password, and whoever writes to it directs all traffic.
func checkLoopback(hostport string) error {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return fmt.Errorf("embedded etcd: listen address %q: write host:port, such as 127.0.0.1:2379: %w", hostport, err)
	}
	ip, err := netip.ParseAddr(host)
	if host == "localhost" || err == nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("embedded etcd: listen address %q is not on loopback, so others could rewrite every route without a password; "+
		"write 127.0.0.1:<port>, or run etcd by itself, with TLS and passwords, and name it under endpoints", hostport)
}

func (s *Server) embedConfig(cfg ServerConfig) (*embed.Config, error) {
	e := embed.NewConfig()
	e.Dir = cfg.Dir
	e.Name = cfg.Name
	if e.Name == "" {
		e.Name = "sluice"
	}
	e.ListenClientUrls = []url.URL{{Scheme: "http", Host: cfg.ListenClient}}
	e.AdvertiseClientUrls = e.ListenClientUrls
	// A single member has no peers, but etcd insists on listening for them. A
	// port of the kernel's choice could be one that a mapping wants later, so
	// it is an abstract socket (unix(7)), which nothing can connect to by chance.
	// etcd removes a file of that name first: in a directory that is not there,
	// since in a working directory that is read-only even that would fail.
	e.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: fmt.Sprintf("@sluice-etcd/%d-%d", os.Getpid(), rand.Uint64())}}
	e.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	e.InitialCluster = e.InitialClusterFromName(e.Name)
	// One that begins anew is another cluster, and has an ID of its own.
	e.InitialClusterToken = fmt.Sprintf("sluice-%016x", rand.Uint64())
	if cfg.Cluster != nil {
		if err := cfg.Cluster.apply(e); err != nil {
			return nil, fmt.Errorf("embedded etcd: cluster: %w", err)
		}
	}
	// Without compaction every version of every key stays until the quota is
	// reached, and then etcd refuses all writes.
	e.AutoCompactionMode = "periodic"
	e.AutoCompactionRetention = "1h"
	e.QuotaBackendBytes = cfg.QuotaBytes
	if e.QuotaBackendBytes == 0 {
		e.QuotaBackendBytes = defaultQuota
	}
	// The gateway speaks JSON over plain HTTP/1, which any web page open in a
	// browser on this machine could post to.
	e.EnableGRPCGateway = false
	e.UnsafeNoFsync = cfg.UnsafeNoFsync
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.log.logger())
	e.ServiceRegister = func(gs *grpc.Server) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.grpc = append(s.grpc, gs)
	}
	return e, nil
}

// startError puts etcd's refusal into words that help.
func startError(cfg ServerConfig, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(cfg.ListenClient)
		if cfg.Cluster != nil && !strings.Contains(err.Error(), cfg.ListenClient) {
			return fmt.Errorf("start embedded etcd: another program listens where the other members are to reach it: %w", err)
		}
		return fmt.Errorf("start embedded etcd: another program listens on %s; `ss -ltnp 'sport = :%s'` names it; "+
			"stop it, give the embedded etcd another listen address, or if it is the etcd to use, name it under endpoints: %w",
			cfg.ListenClient, port, err)
	}
	if cfg.Cluster != nil && strings.Contains(err.Error(), "has already been bootstrapped") {
		return fmt.Errorf("start embedded etcd in %s: the cluster knows this member, whose data is not here any more; have another node "+
			"run `sluice etcd replace %s`, set etcd.cluster.joining here, and start again: %w", cfg.Dir, cfg.Name, err)
	}
	return fmt.Errorf("start embedded etcd in %s: %w", cfg.Dir, err)
}

func (s *Server) waitReady(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start embedded etcd in %s: not ready in time: %w", s.lock.dir, ctx.Err())
	case <-s.etcd.Server.StopNotify():
		return fmt.Errorf("start %w", s.stoppedError())
	case err := <-s.etcd.Err():
		if s.log.reason() != nil { // which is why nobody is served
			err = s.stoppedError()
		}
		return fmt.Errorf("start embedded etcd in %s: %w", s.lock.dir, err)
	case err := <-s.log.failed:
		return fmt.Errorf("start embedded etcd in %s: %w", s.lock.dir, err)
	}
}

// Endpoint returns the URL for clients, such as http://127.0.0.1:2379.
func (s *Server) Endpoint() string {
	return "http://" + s.etcd.Clients[0].Addr().String()
}

// stoppedError says why etcd stopped by itself.
func (s *Server) stoppedError() error {
	why := s.log.reason()
	switch {
	case why == nil:
		return fmt.Errorf("embedded etcd in %s: it stopped by itself; the log says why", s.lock.dir)
	case strings.Contains(why.Error(), "permanently removed"):
		return fmt.Errorf("embedded etcd in %s: %w; to join again, stop this node, remove %s, set etcd.cluster.joining and start, "+
			"once another node has run `sluice etcd replace %s`, which may be what removed it", s.lock.dir, ErrRemoved, s.lock.dir, s.name)
	}
	return fmt.Errorf("embedded etcd in %s: it stopped by itself: %w", s.lock.dir, why)
}

// Wait blocks until ctx ends or the Server is closed, and then returns nil, or
// until etcd fails, such as on a full disk, and then returns why. A failed server is to be
// closed: it may still answer clients, and know nothing new.
// The rest of the process goes on, with what it last read.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.closed:
		return nil
	case <-s.etcd.Server.StopNotify():
		select {
		case <-s.closed: // which stops it
			return nil
		case err := <-s.log.failed:
			return fmt.Errorf("embedded etcd in %s failed: %w", s.lock.dir, err)
		default:
			return s.stoppedError()
		}
	case err := <-s.log.failed:
		return fmt.Errorf("embedded etcd in %s failed: %w", s.lock.dir, err)
	case err := <-s.etcd.Err():
		if err == nil {
			return nil // closed
		}
		if s.log.reason() != nil {
			return s.stoppedError()
		}
		return fmt.Errorf("embedded etcd in %s failed: %w", s.lock.dir, err)
	}
}

// Close stops etcd and waits until its data is on disk and its port and
// directory are free. Close clients first: what they have under way is cut
// after a moment. Closing again does nothing.
func (s *Server) Close() (err error) {
	s.closing.Do(func() {
		close(s.closed)
		err = s.close()
	})
	return err
}

func (s *Server) close() error {
	s.log.silence() // it reports its own listeners' closing as errors
	done := make(chan struct{})
	go func() {
		defer close(done)
		if s.rest != nil {
			s.rest()
			s.caring.Wait()
		}
		s.cutClients()
		s.etcd.Close()
	}()
	select {
	case <-done:
		return s.lock.release()
	case <-time.After(closeLimit):
		// The lock stays: whatever hangs may still write.
		return fmt.Errorf("embedded etcd in %s did not stop within %v (%w)", s.lock.dir, closeLimit, ErrStuck)
	}
}

// cutClients lets requests under way finish and cuts what has not after
// closeGrace.
func (s *Server) cutClients() {
	s.mu.Lock()
	servers := s.grpc
	s.mu.Unlock()
	for _, gs := range servers {
		cut := time.AfterFunc(closeGrace, gs.Stop)
		gs.GracefulStop()
		cut.Stop()
	}
}
