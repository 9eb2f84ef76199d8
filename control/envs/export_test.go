package envs

import "context"

// Await waits until done, which is given the revision of each key, reports true.
func (r *Registry) Await(ctx context.Context, done func(rev func(key string) int64) bool) error {
	return r.await(ctx, func() bool { return done(r.rev) })
}
