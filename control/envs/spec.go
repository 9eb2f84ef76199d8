package envs

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/remotegpu/sluice/portpool"
	"github.com/remotegpu/sluice/router"
)

// checkSpec refuses what no service of a pool may be.
func (m *Manager) checkSpec(d *draft, p *portpool.Pool, spec ServiceSpec) error {
	if spec.Username != "" {
		if err := portpool.CheckUsername(spec.Username); err != nil {
			return &router.FieldError{Path: "username", Msg: err.Error()}
		}
	}
	if !d.guarded || spec.Mapping == nil {
		return nil
	}
	// What the pool says is its author's affair: only what is asked for is looked at.
	const nobody = "192.0.2.1:1" // RFC 5737
	value, err := (&portpool.Pool{Service: p.Service, HTTP: p.HTTP}).MappingValue("env", nobody, spec.Mapping)
	if err != nil {
		return err
	}
	mapping, err := router.ParseMapping(p.Protos()[0], 1, value)
	if err != nil {
		return Within("mapping", err)
	}
	for _, b := range mapping.Backends() {
		if b.Backend == nil {
			continue
		}
		for _, target := range b.Backend.Targets {
			if err := m.checkAddress(d, hostOf(target.Address.String())); err != nil {
				return Within("mapping", &router.FieldError{Path: b.Field, Msg: err.(*router.FieldError).Msg})
			}
		}
	}
	return nil
}

// hostOf returns the host of host:port, or all of it where there is no port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// checkAddress refuses a host of a service, where that is to be guarded: an
// address of Config.Deny, and the names that always stand for this machine. Where
// other names lead, nodes see when they connect. The error is a *router.FieldError.
func (m *Manager) checkAddress(d *draft, host string) error {
	if !d.guarded || len(m.cfg.Deny) == 0 {
		return nil
	}
	addrs := []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	if !router.IsLocalhost(host) {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return nil
		}
		addrs = []netip.Addr{router.EndOf(addr)}
	}
	for _, net := range m.cfg.Deny {
		if slices.ContainsFunc(addrs, net.Contains) {
			return &router.FieldError{Path: "backend", Msg: fmt.Sprintf("%s lies in %v, where whoever is bound to some environments may have none (api.deny_backends in sluice.yaml)", host, net)}
		}
	}
	return nil
}

// sameAs returns nil if there is what spec asks for, else an *ExistsError. The
// registry's lock is held.
func (m *Manager) sameAs(spec Spec, there *Env) error {
	exists := func(format string, args ...any) error {
		return &ExistsError{spec.ID, fmt.Sprintf(format, args...)}
	}
	want := slices.Sorted(maps.Keys(spec.Services))
	switch {
	case spec.Backend != there.Backend:
		return exists("with the backend %q", there.Backend)
	case !spec.ExpiresAt.Truncate(time.Second).Equal(there.ExpiresAt.Truncate(time.Second)):
		return exists("with another expires_at")
	case !slices.Equal(want, there.names()):
		return exists("with other services: %v", there.names())
	}
	for _, name := range want {
		if what := m.difference(spec.Services[name], there, name); what != "" {
			return exists("with %s %s", name, what)
		}
	}
	return nil
}

// difference says in what a service that is there is not what is asked for; "":
// in nothing.
func (m *Manager) difference(s ServiceSpec, there *Env, name string) string {
	has := there.Services[name]
	if s.Port != 0 && s.Port != has.Port || max(s.Span, 1) != max(has.Span, 1) {
		return "at other ports"
	}
	// Without its pool it cannot be said where it would be unless somebody says so.
	backend := has.Backend
	if p := m.reg.book.Pool(name); p != nil {
		backend, _ = backendOf(there, p, s.Backend) // "" where there could be none such
	}
	switch {
	case backend != has.Backend:
		return fmt.Sprintf("at %q", has.Backend)
	case s.Username != has.Username:
		return fmt.Sprintf("for the user %q", has.Username)
	case !slices.Equal(s.InnerPorts, has.InnerPorts):
		return fmt.Sprintf("with the inner_ports %q", has.InnerPorts)
	case !sameJSON(s.Mapping, has.Mapping):
		return "with another mapping"
	case !m.sameSecrets(there.ID, s.Secrets, has.Secrets):
		return "with other secrets"
	}
	return ""
}

// sameJSON reports whether two values, or absent ones, say the same.
func sameJSON(a, b json.RawMessage) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	var va, vb any
	return json.Unmarshal(a, &va) == nil && json.Unmarshal(b, &vb) == nil && reflect.DeepEqual(va, vb)
}

// sameSecrets reports whether sealed secrets are those that are asked for. What
// cannot be opened is not.
func (m *Manager) sameSecrets(id string, want map[string]string, sealed string) bool {
	if len(want) == 0 || sealed == "" {
		return len(want) == 0 && sealed == ""
	}
	has, err := m.open(id, sealed)
	return err == nil && maps.Equal(want, has)
}
