package envs

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/router"
)

// fields are those of a mapping or a route.
type fields map[string]json.RawMessage

// amend has what is written for a service edited in its place, rather than made
// anew of a pool: its mappings, and its route too where routes are. What others
// put there by hand stays as it is. Values have to be read before, so there may be
// another plan to come.
func (m *Manager) amend(d *draft, e *Env, s *Service, routes bool, change func(fields) error) error {
	keys := s.mappingKeys()
	if routes && s.Route != "" {
		keys = append(keys, routesFolder+s.Route)
	}
	for _, key := range keys {
		rev := m.reg.rev(key)
		if rev == 0 || m.reg.maps[key].env != e.ID && m.reg.routes[key].env != e.ID {
			continue
		}
		kv := d.read[key]
		if kv == nil || kv.ModRev != rev {
			d.unread = append(d.unread, key)
			continue
		}
		value := fields{}
		if err := json.Unmarshal(kv.Value, &value); err != nil {
			return fmt.Errorf("read %s: %w; mend it", key, err)
		}
		if err := change(value); err != nil {
			return fmt.Errorf("change %s: %w", key, err)
		}
		text, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if string(text) != string(kv.Value) {
			d.edits = append(d.edits, etcd.Edit{Key: key, Value: text, Since: rev})
		}
	}
	return nil
}

// mappingKeys returns the keys of a service's mappings, if it has any, in order.
func (s *Service) mappingKeys() (keys []string) {
	ports, ok := s.ports()
	if !ok || s.Backend == "" {
		return nil
	}
	for _, proto := range s.protos() {
		for port := ports.First; port <= ports.Last; port++ {
			keys = append(keys, router.MappingKey(proto, port))
		}
	}
	return keys
}

// readKeys reads the values that a draft lacks, and waits for a moment until the
// registry knows as much of them.
func (m *Manager) readKeys(ctx context.Context, d *draft) error {
	for _, key := range d.unread {
		kv, err := m.cfg.Store.ReadKey(ctx, key)
		if err != nil {
			return err
		}
		if kv == nil {
			kv = &etcd.KV{Key: key}
		}
		d.read[key] = kv
	}
	known := func() bool {
		for _, key := range d.unread {
			if rev, now := d.read[key].ModRev, m.reg.rev(key); now != rev && (rev == 0 || now < rev) {
				return false
			}
		}
		return true
	}
	if m.cfg.Refresh != nil {
		m.reg.mu.Lock()
		enough := known()
		m.reg.mu.Unlock()
		if enough {
			return nil
		}
		return m.cfg.Refresh(ctx)
	}
	waiting, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	_ = m.reg.await(waiting, known)
	return ctx.Err()
}

// Drain has the sessions of an environment's mappings end as on_delete says once
// they are deleted, be it "cut", "keep" or "drain 30s", whatever the mappings said
// before. It returns the revision from which on that is so on nodes, 0 if it was so
// already, and the keys. rev, unless 0, is the revision that the environment must
// be as of.
func (m *Manager) Drain(ctx context.Context, id string, rev int64, onDelete string) (since int64, keys []string, err error) {
	if err := new(router.OnDelete).UnmarshalText([]byte(onDelete)); err != nil {
		return 0, nil, &router.FieldError{Path: "drain", Msg: err.Error()}
	}
	since, err = m.change(ctx, func(d *draft) error {
		keys = nil
		e, err := m.env(id)
		if err != nil {
			return err
		}
		if rev != 0 && rev != e.Rev {
			return &StaleError{id, rev, e.Rev}
		}
		for _, name := range e.names() {
			s := e.Services[name]
			keys = append(keys, s.mappingKeys()...)
			if err := m.amend(d, e, s, false, func(f fields) error { return f.set("on_delete", onDelete) }); err != nil {
				return err
			}
		}
		d.same = len(d.edits) == 0 && len(d.unread) == 0
		return nil
	})
	return since, keys, err
}

// carry brings what a service has to the backend and the expiry of e where its
// pool is not there any more, and so nobody knows what else its mappings are made
// of.
func (m *Manager) carry(d *draft, e *Env, name string, s *Service) error {
	there := m.reg.envs[e.ID]
	moved := s.Backend != there.Services[name].Backend
	if !moved && e.ExpiresAt.Equal(there.ExpiresAt) {
		return nil
	}
	e.Services[name] = s
	return m.amend(d, e, s, moved, func(f fields) error {
		for _, to := range []string{"backend", "http"} {
			if err := f.move(to, hostOf(s.Backend)); err != nil {
				return err
			}
		}
		if f["host"] != nil { // a route, which does not expire
			return nil
		}
		return f.expire(e.ExpiresAt)
	})
}

// move has a backend's field lead to another host, at the same port.
func (f fields) move(name, host string) error {
	if f[name] == nil {
		return nil
	}
	var address string
	if err := json.Unmarshal(f[name], &address); err != nil {
		return fmt.Errorf("%s is no plain address; edit it by hand", name)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	return f.set(name, net.JoinHostPort(host, port))
}

// expire has a mapping end at a time; zero: not by itself.
func (f fields) expire(at time.Time) error {
	if at.IsZero() {
		delete(f, "expires_at")
		return nil
	}
	return f.set("expires_at", at)
}

func (f fields) set(name string, v any) (err error) {
	f[name], err = json.Marshal(v)
	return err
}
