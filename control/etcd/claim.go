package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// claim puts the record under the lease. A record that is there already is
// left from an earlier life of this node, and replaced, or another node's. That
// one may have died: only after its lease had time to end is it called alive.
func (s *Session) claim(l *lease) error {
	record := s.ledger.claim()
	if instanceOf(record) != s.cfg.Instance {
		return fmt.Errorf("the record of node %s has no member \"instance\" with the value %q", s.cfg.Node, s.cfg.Instance)
	}
	key := s.c.prefix + s.record
	put := clientv3.OpPut(key, record, clientv3.WithLease(l.id))
	free := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	waiting := waitForName{s: s, giveUp: time.Now().Add(s.cfg.TTL + s.cfg.TTL/2)}
	cond := free
	for {
		resp, err := s.c.txn(l.ctx, l.conn, []clientv3.Cmp{cond}, []clientv3.Op{put}, clientv3.OpGet(key))
		if err != nil {
			return fmt.Errorf("write %s: %w", key, err)
		}
		if resp.Succeeded {
			// All else is written anew, and once more the record.
			s.ledger.startOver()
			s.held = held{rev: resp.Header.Revision}
			return nil
		}
		cond = free
		held := resp.Responses[0].GetResponseRange().Kvs
		switch {
		case len(held) == 0: // gone in this very moment
		case instanceOf(string(held[0].Value)) == s.cfg.Instance && s.yields:
			return ErrSuperseded
		case instanceOf(string(held[0].Value)) == s.cfg.Instance:
			cond = clientv3.Compare(clientv3.ModRevision(key), "=", held[0].ModRevision)
		default:
			if err := waiting.wait(l, string(held[0].Value)); err != nil {
				return err
			}
		}
	}
}

// waitForName spaces the attempts to claim a name that another node holds.
type waitForName struct {
	s      *Session
	giveUp time.Time
	told   bool
}

func (w *waitForName) wait(l *lease, record string) error {
	if time.Now().After(w.giveUp) {
		return &NameTakenError{Node: w.s.cfg.Node, Record: shown([]byte(record))}
	}
	if !w.told {
		w.told = true
		w.s.c.log.Warn("another node holds this node's name in etcd; waiting to see whether it is alive", "node", w.s.cfg.Node, "record", shown([]byte(record)))
	}
	if !sleep(l.ctx, w.s.cfg.TTL/10) {
		return l.ctx.Err()
	}
	return nil
}

// errNameLost says that the node's record is not under this lease any more.
var errNameLost = errors.New("the node's record was removed or replaced")

// guard ends the lease if its record is removed or replaced, so that a node
// that is alive is back at once after somebody wiped the prefix, and an old
// process goes quiet when a new one of the same node begins.
func (s *Session) guard(l *lease) {
	key := s.c.prefix + s.record
	pause := newPause(s.c.pace)
	for l.ctx.Err() == nil {
		resp, err := s.c.get(l.ctx, l.conn, key)
		if err == nil {
			err = s.judgeRecord(l, resp.Kvs)
		}
		if err == nil {
			err = s.guardFrom(l, key, resp.Header.Revision+1)
		}
		if errors.Is(err, errNameLost) || errors.Is(err, ErrSuperseded) {
			l.end(err)
			return
		}
		pause.wait(l.ctx)
	}
}

// guardFrom watches the record from a revision on. It returns what became of
// the record, or nil if the watch ended without telling.
func (s *Session) guardFrom(l *lease, key string, rev int64) error {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	for resp := range l.conn.Watch(ctx, key, clientv3.WithRev(rev)) {
		for _, ev := range resp.Events {
			var held []*mvccpb.KeyValue
			if ev.Type == clientv3.EventTypePut {
				held = append(held, ev.Kv)
			}
			if err := s.judgeRecord(l, held); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeRecord says whether held, what etcd has under the record's key, is this
// session's.
func (s *Session) judgeRecord(l *lease, held []*mvccpb.KeyValue) error {
	switch {
	case len(held) == 0:
		return fmt.Errorf("%w: %s", errNameLost, s.c.prefix+s.record)
	case held[0].Lease == int64(l.id):
		return nil
	case instanceOf(string(held[0].Value)) == s.cfg.Instance:
		return ErrSuperseded
	}
	return fmt.Errorf("%w: %s is now %s", errNameLost, s.c.prefix+s.record, shown(held[0].Value))
}

// shown returns a node's record for people to see, without the instance, of which
// that node derives secrets.
func shown(record []byte) string {
	var members map[string]json.RawMessage
	if json.Unmarshal(record, &members) != nil {
		return "none that can be read"
	}
	delete(members, "instance")
	text, err := json.Marshal(members)
	if err != nil {
		return "none that can be read"
	}
	return string(text)
}

// instanceOf reads the member "instance" of a node's record.
func instanceOf(record string) string {
	var r struct {
		Instance string `json:"instance"`
	}
	if json.Unmarshal([]byte(record), &r) != nil {
		return "" // never equal to ours: it is required
	}
	return r.Instance
}
