package envs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strings"
)

// Access is what people are told of how they reach a service.
type Access struct {
	Host     string `json:"host,omitempty"`
	Port     int    `json:"port,omitempty"`
	Username string `json:"username,omitempty"`
	Command  string `json:"command,omitempty"`
	URL      string `json:"url,omitempty"`
	// Secrets are those that were passed in when the environment was made.
	Secrets map[string]string `json:"secrets,omitempty"`
}

// Access returns how each service of an environment is reached, by their names:
// the texts of the pools, filled in. Without secrets, texts that speak of one are
// left out; so is a command where a secret has characters that mean something to
// a shell.
func (m *Manager) Access(ctx context.Context, id string, secrets bool) (map[string]Access, error) {
	stale, err := m.current(ctx)
	if err != nil {
		return nil, err
	}
	m.reg.mu.Lock()
	defer m.reg.mu.Unlock()
	e, err := m.envAsOf(id, stale)
	if err != nil {
		return nil, err
	}
	all := map[string]Access{}
	for _, name := range e.names() {
		if all[name], err = m.access(e, name, secrets); err != nil {
			return nil, fmt.Errorf("tell how to reach %s of environment %s: %w", name, id, err)
		}
	}
	return all, nil
}

func (m *Manager) access(e *Env, name string, secrets bool) (a Access, err error) {
	s := e.Services[name]
	a = Access{Port: s.Port, Username: s.Username}
	if secrets && s.Secrets != "" {
		if a.Secrets, err = m.open(e.ID, s.Secrets); err != nil {
			return Access{}, err
		}
	}
	p := m.reg.book.Pool(name)
	if p == nil {
		return a, nil
	}
	values := valuesOf(e, p, s)
	a.Host, a.Username = values["host"], values["username"]
	withSecrets := maps.Clone(values)
	for name, value := range a.Secrets {
		withSecrets["secret."+name] = escaped(value)
	}
	// A text that lacks a secret tells nobody how to get in.
	a.URL, _ = withSecrets.Expand(p.Access.URL)
	for name, value := range a.Secrets {
		withSecrets["secret."+name] = value
		if !isPlain(value) { // whoever copies the command would run what it says
			delete(withSecrets, "secret."+name)
		}
	}
	a.Command, _ = withSecrets.Expand(p.Access.Command)
	return a, nil
}

// escaped returns a text as it may stand anywhere in a URL (RFC 3986 section 2).
func escaped(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// isPlain reports whether a shell takes a text for itself, wherever it stands.
func isPlain(text string) bool {
	return text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~+/=@:%,-") == "" && text[0] != '-' && text[0] != '~'
}

// open returns secrets that seal has sealed.
func (m *Manager) open(id, text string) (map[string]string, error) {
	if m.cfg.Open == nil {
		return nil, fmt.Errorf("its secrets are sealed, and there is no cluster key (cluster_key_file in sluice.yaml) to open them with")
	}
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("read its secrets: %w", err)
	}
	plain, err := m.cfg.Open(envsFolder+id, sealed)
	if err != nil {
		return nil, err
	}
	var secrets map[string]string
	if err := json.Unmarshal(plain, &secrets); err != nil {
		return nil, fmt.Errorf("read its secrets: %w", err)
	}
	return secrets, nil
}
