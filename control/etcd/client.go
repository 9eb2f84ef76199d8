package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// Config says which etcd to talk to. Endpoints and Prefix are required.
type Config struct {
	Endpoints []string    // http://host:port, https://host:port or host:port; the list is used as it is
	Prefix    string      // what all keys begin with, such as /sluice; a slash at its end is not significant
	Username  string      // empty: no password authentication
	Password  string      // of Username
	TLS       *tls.Config // for https endpoints; nil: the system's trust roots. Not to be modified afterwards

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // where the sluice_etcd_* metrics go; nil: nowhere
}

// Client is a node's connection to etcd. It is safe for concurrent use. Close
// it after everything that uses it has returned, and before an embedded
// Server is closed.
type Client struct {
	cfg     clientv3.Config
	prefix  string // ends with a slash
	log     *slog.Logger
	metrics *metrics
	pace    pace
	whole   int // see mostWhole
	state   state

	watching atomic.Bool
	syncs    syncs
	leases   leases
	full     atomic.Bool // etcd refuses writes

	// connecting is held, by sending to it, while conn is looked at or set.
	connecting chan struct{}
	conn       *clientv3.Client
	login      *clientv3.Client // of conn, where there is a password; nil: there is none
	closed     bool
}

// pace gathers the durations of a client, so that tests can shorten them.
type pace struct {
	request   time.Duration // longest wait for one answer
	heartbeat time.Duration // between two signs of life asked of a quiet watch
	frozen    time.Duration // silence after which a watch counts as frozen
	fence     time.Duration // shortest time between two fences
	retryMin  time.Duration // first pause after a failure
	retryMax  time.Duration // longest pause between attempts
	revoke    time.Duration // longest wait for a lease to be given back
	// newcomer is how long after its start a node whose name is taken gives up:
	// nobody relies on it yet. Later it may have served for days from the state
	// on disk, with etcd away.
	newcomer time.Duration
}

// windowSize is how many bytes etcd may send ahead of what has been read: a page
// of a load, about.
const windowSize = 1 << 20

var defaultPace = pace{
	request:   10 * time.Second,
	heartbeat: 2 * time.Second,
	frozen:    8 * time.Second,
	fence:     50 * time.Millisecond,
	retryMin:  100 * time.Millisecond,
	retryMax:  5 * time.Second,
	revoke:    3 * time.Second,
	newcomer:  time.Minute,
}

// Dial checks cfg and returns a Client. It neither connects nor waits: an etcd
// that is away is no reason for an edge not to start. Connecting happens at
// first use, and again whenever the connection is lost.
func Dial(cfg Config) (*Client, error) {
	prefix := strings.TrimRight(cfg.Prefix, "/")
	if !strings.HasPrefix(prefix, "/") {
		return nil, fmt.Errorf("etcd prefix %q: write an absolute one, such as /sluice", cfg.Prefix)
	}
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("etcd endpoints: none given; write at least one, such as https://10.0.0.1:2379")
	}
	for _, ep := range cfg.Endpoints {
		if err := checkEndpoint(ep); err != nil {
			return nil, err
		}
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, errors.New("etcd username and password: only one of them is given; write both or neither")
	}
	for _, ep := range cfg.Endpoints {
		if cfg.Password != "" && !isPrivate(ep, cfg.TLS != nil) {
			return nil, fmt.Errorf("etcd endpoint %q is without TLS, and the password would be sent for everybody to read; write https://", ep)
		}
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	return &Client{
		cfg:        clientConfig(cfg),
		prefix:     prefix + "/",
		log:        log,
		metrics:    m,
		pace:       defaultPace,
		whole:      mostWhole,
		connecting: make(chan struct{}, 1),
	}, nil
}

// isPrivate reports whether nobody reads along what is sent to an endpoint: it has
// TLS, as one without a scheme has where there is a configuration for it, or is on
// this machine.
func isPrivate(ep string, withTLS bool) bool {
	scheme, hostport, given := strings.Cut(ep, "://")
	if !given {
		scheme, hostport = "http", ep
		if withTLS {
			scheme = "https"
		}
	}
	host, _, _ := net.SplitHostPort(strings.TrimSuffix(hostport, "/"))
	addr, err := netip.ParseAddr(host)
	return scheme == "https" || host == "localhost" || err == nil && addr.IsLoopback()
}

func checkEndpoint(ep string) error {
	if strings.Contains(ep, "@") {
		return errors.New("etcd endpoints: one has a user or a password in it, which would be in logs; give them apart")
	}
	hostport := ep
	if strings.Contains(ep, "://") {
		u, err := url.Parse(ep)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("etcd endpoint %q: write http://host:port or https://host:port", ep)
		}
		hostport = u.Host
	}
	if _, _, err := net.SplitHostPort(hostport); err != nil {
		return fmt.Errorf("etcd endpoint %q: write http://host:port or https://host:port: %w", ep, err)
	}
	return nil
}

func clientConfig(cfg Config) clientv3.Config {
	return clientv3.Config{
		Endpoints: cfg.Endpoints,
		Username:  cfg.Username,
		Password:  cfg.Password,
		TLS:       cfg.TLS,
		// Bounds the password exchange and nothing else.
		DialTimeout: 5 * time.Second,
		// Servers refuse pings more frequent than every 5 s.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream:  true,
		// What goes wrong is returned to us, and logged once by whoever gives
		// up; the library would log each retry.
		Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			// Windows of a size that is set are not measured: gRPC would answer
			// each change that arrives with a ping, and wake up for its echo.
			grpc.WithInitialWindowSize(windowSize),
			grpc.WithInitialConnWindowSize(windowSize),
			// gRPC's own back-off grows to two minutes: an etcd that was away
			// for one would be missed for another.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: 3 * time.Second,
			}),
		},
	}
}

// Close ends the connection.
func (c *Client) Close() error {
	c.connecting <- struct{}{}
	defer func() { <-c.connecting }()
	c.closed = true
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	if c.login != nil {
		err = errors.Join(err, c.login.Close())
	}
	c.conn, c.login = nil, nil
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd connection: %w", err)
	}
	return nil
}

// connect returns the connection, made at first use: with a password, making
// it asks etcd for a token and so cannot be done while etcd is away.
func (c *Client) connect(ctx context.Context) (*clientv3.Client, error) {
	select {
	case c.connecting <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.connecting }()
	if c.closed {
		return nil, errors.New("etcd client is closed")
	}
	if c.conn != nil {
		return c.conn, nil
	}
	// The connection outlives ctx, the password exchange must not.
	life, end := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, end)
	cfg := c.cfg
	cfg.Context = life
	login, err := withLogin(&cfg)
	var conn *clientv3.Client
	if err == nil {
		conn, err = clientv3.New(cfg)
	}
	if err == nil && !stop() {
		err = errors.Join(ctx.Err(), conn.Close())
	}
	if err != nil {
		if login != nil {
			err = errors.Join(err, login.Close())
		}
		end()
		return nil, fmt.Errorf("log in to etcd %v: %w", c.cfg.Endpoints, err)
	}
	c.conn, c.login = conn, login
	return conn, nil
}

// authenticate is the call that asks for a token.
const authenticate = "/etcdserverpb.Auth/Authenticate"

// withLogin has the client of cfg ask for tokens over a connection of its own,
// which the caller closes; nil: it has no password. The client's own shows each
// call the token that there is, and etcd 3.4 refuses to give another one to who
// shows one that has expired: it would ask in vain, over and over, for ever.
func withLogin(cfg *clientv3.Config) (*clientv3.Client, error) {
	if cfg.Username == "" {
		return nil, nil
	}
	plain := *cfg
	plain.Username, plain.Password = "", ""
	login, err := clientv3.New(plain)
	if err != nil {
		return nil, err
	}
	cfg.DialOptions = append(slices.Clone(cfg.DialOptions), grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if method == authenticate {
				return login.ActiveConnection().Invoke(ctx, method, req, reply, opts...)
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		}))
	return login, nil
}

// brokenError is an error of the connection to etcd, in fewer words than gRPC's.
type brokenError struct {
	endpoints []string
	err       error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("no connection to etcd %v: %s", e.endpoints, status.Convert(e.err).Message())
}

func (e *brokenError) Unwrap() error { return e.err }

// isUnknown reports whether err leaves open whether what was asked of etcd was
// done.
func isUnknown(err error) bool {
	code := status.Code(err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled
}

// explain adds to the bare "context deadline exceeded" of an unanswered
// request what was wrong with the connection, and to a refusal what to do.
func (c *Client) explain(conn *clientv3.Client, err error) error {
	if errors.Is(err, rpctypes.ErrNoSpace) {
		c.noteFull(true)
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		if _, ours := status.FromError(err); ours && status.Code(err) == codes.Unavailable && !errors.As(err, new(rpctypes.EtcdError)) {
			return &brokenError{c.cfg.Endpoints, err}
		}
		return err
	}
	if state := conn.ActiveConnection().GetState(); state != connectivity.Ready {
		return fmt.Errorf("no connection to etcd %v within %v: %w", c.cfg.Endpoints, c.pace.request, err)
	}
	if st, failed := statusOf(context.Background(), conn, conn.Endpoints()[0], time.Second); failed == nil && st.Leader == 0 {
		return fmt.Errorf("etcd %v answers, but none of its members leads: most of them are down or do not reach each other, and until they do "+
			"it takes no edits (`sluice etcd members` asks each): %w", c.cfg.Endpoints, err)
	}
	return fmt.Errorf("etcd %v is connected but gave no answer within %v: %w", c.cfg.Endpoints, c.pace.request, err)
}
