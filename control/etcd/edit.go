package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Edit is a change of one key that somebody wants made.
type Edit struct {
	Key    string // below the prefix
	Value  []byte // of a put
	Delete bool
	// Since is the revision of the key's last change that the wish is based
	// on; 0: there is no such key. Blind edits are made whatever there is.
	Since int64
	Blind bool
	// Check has the key left as it is: that it is as of Since is a condition of
	// the other edits, and no more.
	Check bool
	// End, unless "", has Check stand for all keys from Key up to it, that one
	// excluded: that none of them was put after revision Since. etcd reads them all.
	End string
}

// MaxEdits is how many edits one Commit takes: one less than etcd has operations
// in a transaction by default, for the note.
const MaxEdits = txnOps - 1

// NoteKey is the key that holds the note on the last change that was made by
// Commit. It is written in the very transaction, so that history can say whose
// change it was: etcd itself does not tell.
const NoteKey = "edits/last"

// ConflictError says that a key was changed by somebody else meanwhile.
type ConflictError struct {
	Key string
	// Rev is the revision that it is as of by now; 0: it is gone.
	Rev int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s was changed by somebody else meanwhile; look at it and try again", e.Key)
}

// Prefix returns what all keys begin with, a slash at its end.
func (c *Client) Prefix() string { return c.prefix }

// Read returns the keys that nodes act on, and the revision they are of.
func (c *Client) Read(ctx context.Context) (kvs []KV, rev int64, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, 0, err
	}
	return c.load(ctx, conn)
}

// ReadUnder returns the keys below a folder, such as nodes/, in their order,
// and the revision they are of. rev is the revision to read; 0: the newest.
func (c *Client) ReadUnder(ctx context.Context, folder string, rev int64) (kvs []KV, of int64, err error) {
	kvs, of, _, err = c.ReadPage(ctx, Page{Under: folder, Rev: rev})
	return kvs, of, err
}

// Page is a part of the keys that there are, in the order of their bytes.
type Page struct {
	Under string // what they begin with
	From  string // the first that there may be; "": any
	To    string // the last that there may be; "": any
	Limit int    // so many at most; 0: all
	Rev   int64  // of this revision; 0: the newest
}

// ReadPage returns a part of the keys, the revision they are of, and whether Limit
// has cut off others.
func (c *Client) ReadPage(ctx context.Context, p Page) (kvs []KV, of int64, more bool, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, 0, false, err
	}
	from, end := c.prefix+max(p.Under, p.From), clientv3.GetPrefixRangeEnd(c.prefix+p.Under)
	if p.To != "" {
		end = min(end, c.prefix+p.To+"\x00")
	}
	for of = p.Rev; ; {
		most := pageKeys
		if p.Limit > 0 {
			most = min(most, p.Limit-len(kvs))
		}
		// Where from lies behind end there is nothing, and etcd says so.
		page, err := c.get(ctx, conn, from, clientv3.WithRange(end), clientv3.WithLimit(int64(most)), clientv3.WithRev(of))
		if err != nil {
			return nil, 0, false, fmt.Errorf("read %s%s: %w", c.prefix, p.Under, err)
		}
		if of == 0 {
			of = page.Header.Revision
		}
		kvs = c.appendKVs(kvs, page.Kvs)
		if !page.More || len(kvs) == p.Limit {
			return kvs, of, page.More, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// Commit makes all of edits at one revision, which it returns, or none of them:
// a *ConflictError if a key is no longer as Since says. There are at most
// MaxEdits, each of another key. note says who made them and how.
func (c *Client) Commit(ctx context.Context, edits []Edit, note string) (rev int64, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return 0, err
	}
	conds := make([]clientv3.Cmp, 0, len(edits))
	then := make([]clientv3.Op, 0, len(edits)+1)
	orElse := make([]clientv3.Op, len(edits))
	for i, e := range edits {
		key := c.prefix + e.Key
		orElse[i] = clientv3.OpGet(key, clientv3.WithKeysOnly())
		switch {
		case e.End != "":
			end := c.prefix + e.End
			conds = append(conds, clientv3.Compare(clientv3.ModRevision(key), "<", e.Since+1).WithRange(end))
			orElse[i] = clientv3.OpGet(key, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(1), clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
		case !e.Blind:
			conds = append(conds, clientv3.Compare(clientv3.ModRevision(key), "=", e.Since))
		}
		switch {
		case e.Check:
		case e.Delete:
			then = append(then, clientv3.OpDelete(key))
		default:
			then = append(then, clientv3.OpPut(key, string(e.Value)))
		}
	}
	removes := !slices.ContainsFunc(then, clientv3.Op.IsPut)
	noted := append(then, clientv3.OpPut(c.prefix+NoteKey, note))
	resp, err := c.txn(ctx, conn, conds, noted, orElse...)
	if removes && len(then) > 0 && errors.Is(err, ErrFull) { // which a note is not worth: it makes room
		resp, err = c.txn(ctx, conn, conds, then, orElse...)
	}
	if err != nil {
		doubt := ""
		if isUnknown(err) {
			doubt = ", which may or may not have been done"
		}
		return 0, fmt.Errorf("write %d keys, the first of them %s%s: %w", len(edits), c.prefix+edits[0].Key, doubt, err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	for i, e := range edits {
		now := &ConflictError{Key: e.Key}
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			now.Key, now.Rev = strings.TrimPrefix(string(kvs[0].Key), c.prefix), kvs[0].ModRevision
		}
		if !e.Blind && (now.Rev > e.Since || now.Rev < e.Since && e.End == "") {
			return 0, now
		}
	}
	return 0, &ConflictError{Key: edits[0].Key} // and changed back, which etcd's revisions rule out
}

// Follow passes the changes below folders after revision rev to each, in the
// order of their revisions, until each returns true or an error, or ctx ends.
func (c *Client) Follow(ctx context.Context, folders []string, rev int64, each func([]Change) (done bool, err error)) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	merged := make(chan clientv3.WatchResponse)
	for _, folder := range folders {
		watch := conn.Watch(ctx, c.prefix+folder, clientv3.WithPrefix(), clientv3.WithRev(rev+1))
		go func() {
			for resp := range watch {
				select {
				case merged <- resp:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resp := <-merged:
			if err := resp.Err(); err != nil {
				return fmt.Errorf("watch %s below %s: %w", strings.Join(folders, ", "), c.prefix, err)
			}
			if done, err := each(c.appendChanges(nil, resp.Events)); done || err != nil {
				return err
			}
		}
	}
}

// ReadLast returns the last key below a folder, nil if there is none.
func (c *Client) ReadLast(ctx context.Context, folder string) (*KV, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	page, err := c.get(ctx, conn, c.prefix+folder, append(clientv3.WithLastKey(), clientv3.WithRange(clientv3.GetPrefixRangeEnd(c.prefix+folder)))...)
	if err != nil {
		return nil, fmt.Errorf("read %s%s: %w", c.prefix, folder, err)
	}
	kvs := c.appendKVs(nil, page.Kvs)
	if len(kvs) == 0 {
		return nil, nil
	}
	return &kvs[0], nil
}

// ReadRange returns at most limit of the keys below a folder that come after
// the name after, in their order.
func (c *Client) ReadRange(ctx context.Context, folder, after string, limit int) ([]KV, error) {
	p := Page{Under: folder, Limit: limit}
	if after != "" {
		p.From = folder + after + "\x00"
	}
	kvs, _, _, err := c.ReadPage(ctx, p)
	return kvs, err
}

// ReadNames returns the first keys, at most limit, that begin with prefix.
func (c *Client) ReadNames(ctx context.Context, prefix string, limit int) ([]string, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	page, err := c.get(ctx, conn, c.prefix+prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, fmt.Errorf("read the names of keys that begin with %s%s: %w", c.prefix, prefix, err)
	}
	names := make([]string, len(page.Kvs))
	for i, kv := range page.Kvs {
		names[i] = strings.TrimPrefix(string(kv.Key), c.prefix)
	}
	return names, nil
}
