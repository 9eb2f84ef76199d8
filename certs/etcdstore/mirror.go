package etcdstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/certs"
	"github.com/remotegpu/sluice/certs/seal"
	"github.com/remotegpu/sluice/control/etcd"
)

// Mirrored are the folders that a mirror is to be given by the watch.
var Mirrored = []string{root + "attempts/", root + "certificates/", root + "shared/"}

// Mirror is what this node has of what the cluster shares: in memory, and
// sealed on disk. It is filled from disk by New, and then by the watch, which
// calls Load and Change. All methods are safe for concurrent use.
type Mirror struct {
	ring    *ringKeeper
	log     *slog.Logger
	metrics *metrics
	disk    *disk

	names certs.Watchers // told of names
	keys  certs.Watchers // told of keys of shared values

	inbox inbox
	lost  chan struct{} // holds a token while something may be to be put back

	mu     sync.Mutex // guards the following
	certs  map[place]*cert
	named  map[string][]string // issuers by name, in order
	values map[string]*value   // by key, below root
}

// place is where a certificate is kept.
type place struct{ issuer, name string }

// The files of a certificate.
const (
	chainFile = iota
	keyFile
	metaFile
	files
)

var suffixes = [files]string{"crt", "key", "json"}

// sealed is a file as etcd has it. The zero value: there is none.
type sealed struct {
	data string
	rev  int64
}

// cert is a certificate: as etcd has it, and as it is served.
type cert struct {
	unit string        // what it is called on disk, where its files are one: their folder, below root
	keys [files]string // of its files, below the prefix
	now  [files]sealed
	good [files]sealed    // the last that went together; none: nothing is served
	cert *tls.Certificate // good, parsed; nil where there is none
	gone bool             // taken away
	lost bool             // not in etcd as this node has it, and to be put back there
	err  error            // why now is not good; nil: it is
}

// kept returns what of a certificate is kept on disk.
func (c *cert) kept() []diskFile {
	var kept []diskFile
	for file, s := range c.good {
		if s != (sealed{}) {
			kept = append(kept, diskFile{c.keys[file], s})
		}
	}
	return kept
}

// value is a shared value.
type value struct {
	now  sealed
	good sealed
	open certs.Value // good, opened
	err  error       // why now is not good; nil: it is
}

func newMirror(cfg Config, ring *ringKeeper, m *metrics) (*Mirror, error) {
	mir := &Mirror{
		ring: ring, log: cfg.Logger, metrics: m, inbox: inbox{ready: make(chan struct{}, 1)}, lost: make(chan struct{}, 1),
		certs: map[place]*cert{}, named: map[string][]string{}, values: map[string]*value{},
	}
	disk, err := openDisk(cfg.Dir, cfg.Logger, m)
	if err != nil {
		return nil, err
	}
	mir.disk = disk
	touched := newTouched()
	mir.mu.Lock()
	defer mir.mu.Unlock()
	err = disk.read(func(key string, s sealed) { mir.putLocked(key, s, touched) })
	mir.settleLocked(touched)
	disk.forget() // it is on disk
	return mir, err
}

// touched gathers what is to be looked at anew.
type touched struct {
	certs  map[place]bool
	values map[string]bool
}

func newTouched() *touched { return &touched{map[place]bool{}, map[string]bool{}} }

// Load takes all mirrored keys, as control/etcd's Watch has them. It returns
// at once.
func (m *Mirror) Load(_ int64, kvs []etcd.KV) { m.inbox.put(batch{load: true, kvs: kvs}) }

// Change takes changes of mirrored keys, as control/etcd's Watch has them. It
// returns at once.
func (m *Mirror) Change(_ int64, changes []etcd.Change) {
	if len(changes) > 0 {
		m.inbox.put(batch{changes: changes})
	}
}

// purgeEvery is how often certificates are let go that were deleted and have
// expired.
const purgeEvery = time.Hour

// run takes batches and keeps the disk up to date until ctx ends.
func (m *Mirror) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { m.disk.run(ctx) })
	purge := time.NewTicker(purgeEvery)
	defer purge.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.inbox.ready:
			for _, b := range m.inbox.takeAll() {
				m.take(b)
			}
		case <-purge.C:
			m.purge(time.Now())
		}
	}
}

func (m *Mirror) take(b batch) {
	touched := newTouched()
	m.mu.Lock()
	if b.load {
		m.loadLocked(b.kvs, touched)
	}
	for _, ch := range b.changes {
		s := sealed{string(ch.Value), ch.ModRev}
		if ch.Deleted {
			s = sealed{}
		}
		m.putLocked(ch.Key, s, touched)
	}
	m.mu.Unlock()
	m.settle(touched)
}

// settleStep is how many certificates are looked at before others may look, too,
// and are told of what is new.
const settleStep = 128

// settle looks at what was touched, and tells of what is new.
func (m *Mirror) settle(touched *touched) {
	for len(touched.certs)+len(touched.values) > 0 {
		step := newTouched()
		for p := range touched.certs {
			if len(step.certs) == settleStep {
				break
			}
			step.certs[p] = true
			delete(touched.certs, p)
		}
		step.values, touched.values = touched.values, nil
		m.mu.Lock()
		names, keys := m.settleLocked(step)
		m.mu.Unlock()
		m.names.Tell(names...)
		m.keys.Tell(keys...)
	}
}

// loadLocked makes what there is what kvs are.
func (m *Mirror) loadLocked(kvs []etcd.KV, touched *touched) {
	there := make(map[string]bool, len(kvs))
	for _, kv := range kvs {
		there[kv.Key] = true
		m.putLocked(kv.Key, sealed{string(kv.Value), kv.ModRev}, touched)
	}
	for _, c := range m.certs {
		for file := range c.now {
			if key := c.keys[file]; c.now[file] != (sealed{}) && !there[key] {
				m.putLocked(key, sealed{}, touched)
			}
		}
	}
	for key := range m.values {
		if !there[root+key] {
			m.putLocked(root+key, sealed{}, touched)
		}
	}
}

// putLocked notes what etcd has under a key, below the prefix.
func (m *Mirror) putLocked(key string, s sealed, touched *touched) {
	key = strings.TrimPrefix(key, root)
	issuer, name, suffix, isCert := certs.FileOf(key)
	if !isCert {
		if strings.HasPrefix(key, "shared/") || strings.HasPrefix(key, "attempts/") {
			v := m.values[key]
			if v == nil {
				v = &value{}
				m.values[key] = v
			}
			v.now = s
			touched.values[key] = true
		}
		return
	}
	p := place{issuer, name}
	c := m.certs[p]
	if c == nil {
		c = &cert{unit: path.Dir(key)}
		for file, suffix := range suffixes {
			c.keys[file] = root + c.unit + "/" + path.Base(c.unit) + "." + suffix
		}
		m.certs[p] = c
		m.named[name] = append(m.named[name], issuer)
		slices.Sort(m.named[name])
	}
	c.now[slices.Index(suffixes[:], suffix)] = s
	touched.certs[p] = true
}

// settleLocked looks at what was touched, and returns the names and keys of
// which there is news.
func (m *Mirror) settleLocked(touched *touched) (names, keys []string) {
	ring := m.ring.get()
	for key := range touched.values { // first: they say which certificates were taken away
		if m.settleValueLocked(key, ring) {
			keys = append(keys, key)
			m.notedLocked(key, touched)
		}
	}
	for p := range touched.certs {
		if m.settleCertLocked(p, ring) {
			names = append(names, p.name)
		}
	}
	m.countLocked()
	return names, keys
}

// settleCertLocked looks at a certificate and reports whether there is news.
func (m *Mirror) settleCertLocked(p place, ring *seal.Ring) bool {
	c := m.certs[p]
	if c == nil {
		return false // removed meanwhile
	}
	before := *c
	c.settle(p, ring, m.removedLocked)
	if c.lost {
		m.missing()
	}
	if c.now == [files]sealed{} && c.cert == nil { // deleted, and never usable
		m.removeLocked(p)
	}
	trouble := !sameText(before.err, c.err)
	if trouble && c.err != nil {
		m.log.Error("a certificate in etcd is refused; the last good one, if there was one, stays in use", "domain", p.name, "issuer", p.issuer, "err", c.err)
	}
	if before.good != c.good {
		m.disk.save(c.unit, c.kept())
		return true
	}
	return trouble || before.gone != c.gone || before.cert != c.cert
}

func sameText(a, b error) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error())
}

// settle makes what etcd has what is served, if it is good.
func (c *cert) settle(p place, ring *seal.Ring, removed func(*x509.Certificate) bool) {
	c.err, c.lost = nil, false
	if c.now[chainFile] == (sealed{}) && c.now[keyFile] == (sealed{}) {
		c.vanished(p, ring, removed)
		return
	}
	c.gone = c.cert != nil && removed(c.cert.Leaf)
	if c.now == c.good && c.cert != nil {
		return
	}
	stored, err := c.open(p, c.now, ring)
	if err != nil {
		c.err = err
		return
	}
	if c.err = c.setBack(p, stored, removed); c.err != nil {
		c.lost = true
		return
	}
	leaf, now := stored.Certificate.Leaf, time.Now()
	if c.cert != nil && now.After(leaf.NotAfter) && now.Before(c.cert.Leaf.NotAfter) {
		c.err = fmt.Errorf("the stored certificate of %s from %s has expired at %s, as after a restore from an old backup; this node has one that holds until %s",
			p.name, p.issuer, leaf.NotAfter.UTC().Format(time.RFC3339), c.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	if c.cert == nil || !slices.EqualFunc(c.cert.Certificate, stored.Certificate.Certificate, bytes.Equal) {
		c.cert = stored.Certificate // else it was sealed anew, or its renewal information is new
	}
	c.good, c.gone = c.now, removed(leaf)
}

// open opens files of the certificate.
func (c *cert) open(p place, from [files]sealed, ring *seal.Ring) (*certs.Stored, error) {
	var plain [files][]byte
	var at time.Time
	rev := int64(0)
	for file, s := range from {
		if s == (sealed{}) {
			if file != metaFile {
				return nil, fmt.Errorf("the stored certificate of %s from %s is torn: there is no %s", p.name, p.issuer, c.keys[file])
			}
			continue
		}
		var err error
		var sealedAt time.Time
		if plain[file], sealedAt, err = open(ring, c.keys[file], []byte(s.data)); err != nil {
			return nil, fmt.Errorf("the stored certificate of %s from %s cannot be read: %s: %w", p.name, p.issuer, c.keys[file], err)
		}
		if file == chainFile {
			at = sealedAt
		}
		rev = max(rev, s.rev)
	}
	stored, err := certs.ParseStored(p.issuer, p.name, plain[chainFile], plain[keyFile], plain[metaFile])
	if err != nil {
		return nil, err
	}
	stored.Rev, stored.Modified = rev, at
	return stored, nil
}

// settleValueLocked looks at a shared value and reports whether there is news.
func (m *Mirror) settleValueLocked(key string, ring *seal.Ring) bool {
	v := m.values[key]
	switch {
	case v == nil: // removed meanwhile
		return false
	case v.now == (sealed{}) && m.keepsLocked(key, v):
		return false
	case v.now == (sealed{}):
		delete(m.values, key)
		m.disk.save(key, nil)
		if root+key == markerKey {
			m.ring.unmark()
		}
		return v.good != (sealed{})
	case v.now == v.good:
		v.err = nil
		return false
	case root+key == markerKey:
		m.ring.meet([]byte(v.now.data))
	}
	data, at, err := open(ring, root+key, []byte(v.now.data))
	if err != nil {
		if !sameText(v.err, err) && root+key != markerKey { // of which the ring has told
			m.log.Error("a shared value in etcd is refused; the last good one, if there was one, stays in use", "key", root+key, "err", err)
		}
		v.err = err
		return false
	}
	v.good, v.err = v.now, nil
	v.open = certs.Value{Data: data, Rev: v.now.rev, Modified: at}
	if strings.HasPrefix(key, "shared/") { // what was attempted lately is not worth a disk's time
		m.disk.save(key, []diskFile{{root + key, v.good}})
	}
	return true
}

func (m *Mirror) removeLocked(p place) {
	m.disk.save(m.certs[p].unit, nil)
	delete(m.certs, p)
	rest := slices.DeleteFunc(m.named[p.name], func(issuer string) bool { return issuer == p.issuer })
	if m.named[p.name] = rest; len(rest) == 0 {
		delete(m.named, p.name)
	}
}

// count returns how many certificates are served, and how many are refused.
func (m *Mirror) count() (usable, refused int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.certsLocked()
}

func (m *Mirror) certsLocked() (usable, refused int) {
	for _, c := range m.certs {
		if c.cert != nil {
			usable++
		}
		if c.err != nil {
			refused++
		}
	}
	return usable, refused
}

func (m *Mirror) countLocked() {
	usable, refused := m.certsLocked()
	for _, v := range m.values {
		if v.err != nil {
			refused++
		}
	}
	m.metrics.certificates.Set(float64(usable))
	m.metrics.refused.Set(float64(refused))
}

// purge lets go of certificates that were deleted and have expired.
func (m *Mirror) purge(now time.Time) {
	var names []string
	m.mu.Lock()
	for p, c := range m.certs {
		if c.gone && now.After(c.cert.Leaf.NotAfter) {
			m.removeLocked(p)
			names = append(names, p.name)
		}
	}
	m.countLocked()
	m.mu.Unlock()
	m.names.Tell(names...)
}

// ringChanged looks anew at what could not be opened.
func (m *Mirror) ringChanged() {
	touched := newTouched()
	m.mu.Lock()
	for p, c := range m.certs {
		if c.err != nil {
			touched.certs[p] = true
		}
	}
	for key, v := range m.values {
		if v.err != nil {
			touched.values[key] = true
		}
	}
	m.mu.Unlock()
	m.settle(touched)
}
