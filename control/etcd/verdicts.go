package etcd

import "strings"

const (
	maxVerdict    = 1 << 10
	maxVerdictKey = 4 << 10
)

// Verdicts are what a node says became of each key, kept in etcd under
// verdicts/<node>/<key> for as long as the node lives. It is safe for
// concurrent use.
type Verdicts struct {
	ledger *ledger
	prefix string
}

// Verdicts returns the verdicts of the session's node.
func (s *Session) Verdicts() *Verdicts {
	return &Verdicts{ledger: s.ledger, prefix: "verdicts/" + s.cfg.Node + "/"}
}

// Set makes text the verdict on key, which is below the cluster's prefix, such
// as ports/tcp/20022. It returns at once: a verdict is written soon after, if
// it differs from what was written last and is not replaced meanwhile. More
// than 1 KiB of text is cut; a key of more than 4 KiB gets no verdict.
func (v *Verdicts) Set(key, text string) {
	if len(key) > maxVerdictKey {
		return
	}
	if len(text) > maxVerdict {
		text = strings.ToValidUTF8(text[:maxVerdict], "") + "..."
	}
	v.ledger.set(v.prefix+key, text)
}

// Delete removes the verdict on key, and like Set returns at once.
func (v *Verdicts) Delete(key string) { v.ledger.drop(v.prefix + key) }
