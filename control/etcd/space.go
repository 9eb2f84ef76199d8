package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

// ErrFull says that etcd's quota is reached: it takes deletions alone, also once
// there is room again, until somebody ends the alarm.
var ErrFull = errors.New("etcd is full: its quota is reached, and it takes deletions alone until it is compacted, defragmented and its alarm ended; " +
	"OPERATIONS.md, \"etcd is full\", has the commands")

// Full reports whether etcd refused what this client wrote last because its quota
// is reached.
func (c *Client) Full() bool { return c.full.Load() }

func (c *Client) noteFull(is bool) {
	if c.full.Swap(is) == is {
		return
	}
	c.metrics.full.Set(0)
	if is {
		c.metrics.full.Set(1)
		c.log.Error("etcd refuses all writes; this node serves on", "err", ErrFull)
	} else {
		c.log.Info("etcd takes writes again")
	}
}

// noteRoom is told of what etcd has written.
func (c *Client) noteRoom(done []clientv3.Op) {
	if c.full.Load() && slices.ContainsFunc(done, clientv3.Op.IsPut) {
		c.noteFull(false)
	}
}

// spaceEvery is how often an embedded etcd is looked after.
const spaceEvery = 10 * time.Second

// keepSpace looks after the room that an embedded etcd has, until ctx ends. Nobody
// else does: what nodes write for each other alone fills a quota within the hour
// for which all versions of all keys are kept, if nodes come and go often enough;
// then nothing can be changed any more.
func (s *Server) keepSpace(ctx context.Context, quota int64) {
	// The newest revisions stay: somebody may be about to read them.
	rev := s.etcd.Server.KV().Rev()
	for sleep(ctx, spaceEvery) {
		full := s.isFull()
		if full || s.etcd.Server.Backend().Size() > quota/10*8 && s.etcd.Server.Backend().SizeInUse() > quota/10*6 {
			if err := s.makeRoom(ctx, rev, full, quota); err != nil && ctx.Err() == nil {
				s.log.to.Error("the embedded etcd is short of room", "err", err, "quota", quota, "in_use", s.etcd.Server.Backend().SizeInUse())
			}
		}
		rev = s.etcd.Server.KV().Rev()
	}
}

func (s *Server) isFull() bool {
	own := uint64(s.etcd.Server.MemberID())
	return slices.ContainsFunc(s.etcd.Server.Alarms(), func(a *etcdserverpb.AlarmMember) bool {
		return a.MemberID == own && a.Alarm == etcdserverpb.AlarmType_NOSPACE
	})
}

// makeRoom forgets what the keys were before revision rev, and where etcd is full
// already, gives what is free back and has it take writes again.
func (s *Server) makeRoom(ctx context.Context, rev int64, full bool, quota int64) error {
	ctx, cancel := context.WithTimeout(ctx, defaultPace.request)
	defer cancel()
	_, err := s.etcd.Server.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: rev, Physical: true})
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact etcd to make room: %w", err)
	}
	if !full {
		return nil
	}
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment etcd to make room: %w", err)
	}
	if used := s.etcd.Server.Backend().SizeInUse(); used > quota/10*9 {
		return fmt.Errorf("what keys there are takes %d bytes: %w", used, ErrFull)
	}
	_, err = s.etcd.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_DEACTIVATE, MemberID: uint64(s.etcd.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE,
	})
	if err != nil {
		return fmt.Errorf("have etcd take writes again: %w", err)
	}
	s.log.to.Warn("the embedded etcd was full; it was compacted and defragmented, and takes writes again", "quota", quota)
	return nil
}
