package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// etcd takes at most 128 operations in a transaction, and 1.5 MiB.
	txnOps   = 128
	txnBytes = 512 << 10

	// txnSpacing, gatherSpacing and txnCredit bound what one node asks of etcd:
	// 200 transactions a second while there is enough to fill them, which is
	// 25,000 keys, else 20, since each costs both sides more than the keys in it.
	// Some need not wait: the verdict on a single edit is there at once.
	txnSpacing    = 5 * time.Millisecond
	gatherSpacing = 50 * time.Millisecond
	txnCredit     = 150 * time.Millisecond
)

// write brings etcd to what the ledger says, and keeps it there, until the
// lease ends or the name turns out to be no longer this session's. Other
// failures are tried again, under the same lease.
func (s *Session) write(l *lease) error {
	var budget throttle
	var trouble *pause // while writing fails
	for s.ledger.await(l.ctx, 5*s.c.pace.heartbeat) && budget.wait(l.ctx, s.ledger.backlog() >= txnOps) {
		due := s.ledger.next(txnOps, txnBytes)
		s.c.metrics.pending.Set(float64(len(due) + s.ledger.backlog()))
		began := time.Now()
		err := s.commit(l, due) // where there is nothing due, a look at whether all is as it was
		s.etcdPace.note(time.Since(began))
		if err == nil {
			s.ledger.done(due)
			s.c.metrics.pending.Set(float64(s.ledger.backlog()))
			s.c.metrics.writes.Add(float64(len(due)))
			trouble = nil
			continue
		}
		s.ledger.again(due)
		if l.ctx.Err() != nil {
			break // cut off by our own end or the lease's, which is no failure of etcd
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || errors.Is(err, ErrSuperseded) || errors.Is(err, errNameLost) || errors.Is(err, errSetBack) {
			return err
		}
		s.c.metrics.failures.Inc()
		if trouble == nil {
			trouble = newPause(s.c.pace)
			s.c.log.Warn("cannot write this node's record and verdicts to etcd; trying again", "err", err)
		}
		trouble.wait(l.ctx)
	}
	return l.ctx.Err()
}

// throttle spaces transactions, after txnCredit of them that it lets through.
type throttle struct {
	booked time.Time // when all so far would be over, were they evenly spaced
}

// wait waits until the next transaction may be, which is sooner if it is full.
func (t *throttle) wait(ctx context.Context, full bool) bool {
	now := time.Now()
	if t.booked.Before(now) {
		t.booked = now
	}
	spacing := gatherSpacing
	if full {
		spacing = txnSpacing
	}
	t.booked = t.booked.Add(spacing)
	return sleep(ctx, t.booked.Sub(now)-txnCredit)
}

// held is what a session knows of its record in etcd.
type held struct {
	rev int64 // of its last change that was answered
	// doubts are later ones that were not, any of which may have been made.
	doubts []string
}

// maxDoubts bounds them: of more, one is taken for ours whatever it is.
const maxDoubts = 64

// doubt notes that it is not known whether record was written.
func (h *held) doubt(record string) {
	if len(h.doubts) < maxDoubts && !slices.Contains(h.doubts, record) {
		h.doubts = append(h.doubts, record)
	}
}

// mayBe reports whether what etcd has can be what this session wrote.
func (h *held) mayBe(kv *mvccpb.KeyValue) bool {
	return kv.ModRevision > h.rev && (len(h.doubts) == maxDoubts || slices.Contains(h.doubts, string(kv.Value)))
}

// commit writes due in one transaction, provided that the name is ours, and that
// etcd has what was written last: what is known to be there is not written again.
func (s *Session) commit(l *lease, due []write) error {
	ops := make([]clientv3.Op, len(due))
	var put *string // the record
	for i, w := range due {
		if w.drop {
			ops[i] = clientv3.OpDelete(s.c.prefix + w.key)
		} else {
			ops[i] = clientv3.OpPut(s.c.prefix+w.key, w.value, clientv3.WithLease(l.id))
			if w.key == s.record {
				put = &w.value
			}
		}
	}
	record := s.c.prefix + s.record
	for {
		ours := []clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue(record), "=", l.id), clientv3.Compare(clientv3.ModRevision(record), "=", s.held.rev)}
		resp, err := s.c.txn(l.ctx, l.conn, ours, ops, clientv3.OpGet(record))
		if err != nil {
			if put != nil {
				s.held.doubt(*put)
			}
			return fmt.Errorf("write %d of the keys that go with %s: %w", len(due), record, err)
		}
		if resp.Succeeded {
			if put != nil {
				s.held = held{rev: resp.Header.Revision}
			}
			return nil
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if err := s.judgeRecord(l, kvs); err != nil {
			return err
		}
		if !s.held.mayBe(kvs[0]) {
			return fmt.Errorf("%w: %s was last changed at revision %d, and by this node at %d", errSetBack, record, kvs[0].ModRevision, s.held.rev)
		}
		s.held = held{rev: kvs[0].ModRevision} // it was made after all
	}
}
