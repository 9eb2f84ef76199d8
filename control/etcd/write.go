package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	for s.ledger.await(l.ctx) && budget.wait(l.ctx, s.ledger.backlog() >= txnOps) {
		due := s.ledger.next(txnOps, txnBytes)
		s.c.metrics.pending.Set(float64(len(due) + s.ledger.backlog()))
		if len(due) == 0 {
			continue
		}
		err := s.commit(l, due)
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
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || errors.Is(err, ErrSuperseded) || errors.Is(err, errNameLost) {
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

// commit writes due in one transaction, provided that the name is ours.
func (s *Session) commit(l *lease, due []write) error {
	ops := make([]clientv3.Op, len(due))
	for i, w := range due {
		if w.drop {
			ops[i] = clientv3.OpDelete(s.c.prefix + w.key)
		} else {
			ops[i] = clientv3.OpPut(s.c.prefix+w.key, w.value, clientv3.WithLease(l.id))
		}
	}
	record := s.c.prefix + s.record
	ours := clientv3.Compare(clientv3.LeaseValue(record), "=", l.id)
	resp, err := s.c.txn(l.ctx, l.conn, []clientv3.Cmp{ours}, ops, clientv3.OpGet(record))
	if err != nil {
		return fmt.Errorf("write %d keys, the first of them %s: %w", len(due), s.c.prefix+due[0].key, err)
	}
	if resp.Succeeded {
		return nil
	}
	return s.judgeRecord(l, resp.Responses[0].GetResponseRange().Kvs)
}
