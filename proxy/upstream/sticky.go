package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
)

// tokenBytes is how much of a target's hash stands in a cookie: enough that no
// two targets of a backend ever share it.
const tokenBytes = 16

// token names ep to clients, who cannot tell from it what ep is without the key.
// It need not be kept from being made up: it leads to targets that the client
// may be sent to anyway.
func (d *Dialer) token(ep Endpoint) string {
	h := hmac.New(sha256.New, d.cookieKey)
	h.Write([]byte("sluice sticky target\n" + ep.String()))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:tokenBytes])
}

// tokensOf returns the tokens of b's targets, which hold no variables.
func (a *Attempt) tokensOf() []string {
	if len(a.backend.Targets) == 1 {
		return []string{a.dialer.token(a.target(0))}
	}
	g := a.dialer.groups.of(a.backend)
	g.naming.Do(func() {
		g.tokens = make([]string, len(a.backend.Targets))
		for i := range g.tokens {
			g.tokens[i] = a.dialer.token(a.target(i))
		}
	})
	return g.tokens
}

// stick has the attempt begin with the target that token names, if it is one of
// them and well.
func (a *Attempt) stick(token string) {
	if a.backend.Sticky == nil || token == "" || a.eps != nil {
		return
	}
	token, tag := untagged(token)
	for i, t := range a.tokensOf() {
		if t == token {
			a.stuck, a.stuckAt = int32(i)+1, tag
			return
		}
	}
}

// pickStuck takes the target that the client is to stay at; ok is false where
// that is another's task.
func (a *Attempt) pickStuck() (i int, ok bool) {
	if a.stuck == 0 || a.begun > 0 || a.order == nil || a.isBad(a.stuck-1) {
		return 0, false
	}
	for at, i := range a.order {
		if i == a.stuck-1 {
			a.order[0], a.order[at] = i, a.order[0]
		}
	}
	i = int(a.stuck - 1)
	if a.balance == byLoad || a.balance == byChance || a.backend.Hash != nil && a.backend.Hash.MaxLoad > 0 {
		a.count(i)
	}
	return i, true
}

// Token returns the value of the cookie by which a client comes back to the
// target under way; "" where the client has it already, or the backend's clients
// do not stay.
func (a *Attempt) Token() string {
	if a.backend.Sticky == nil || a.eps != nil || a.begun == 0 {
		return ""
	}
	tag := uint64(0)
	if a.several {
		tag = a.dialer.tag(a.addr)
	}
	switch token := a.tokensOf()[a.at]; {
	case a.at == a.stuck-1 && (tag == 0 || tag == a.stuckAt):
		return ""
	case tag != 0:
		return tagged(token, tag)
	default:
		return token
	}
}
