package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// grpcBackend is the part of gRPC's own interoperability service that is used
// here.
type grpcBackend struct {
	grpc_testing.UnimplementedTestServiceServer
	ended chan error // gets the context's error of a stream that the client left
}

func payload(size int32) *grpc_testing.Payload {
	return &grpc_testing.Payload{Body: make([]byte, size)}
}

func (grpcBackend) UnaryCall(ctx context.Context, req *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	incoming, _ := metadata.FromIncomingContext(ctx)
	grpc.SetHeader(ctx, metadata.MD{"x-header": incoming["x-sent"], "x-data-bin": incoming["x-data-bin"]})
	grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "late"))
	if s := req.GetResponseStatus(); s.GetCode() != 0 {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	return &grpc_testing.SimpleResponse{Payload: payload(req.GetResponseSize())}, nil
}

func (grpcBackend) StreamingOutputCall(req *grpc_testing.StreamingOutputCallRequest, stream grpc.ServerStreamingServer[grpc_testing.StreamingOutputCallResponse]) error {
	for _, p := range req.GetResponseParameters() {
		if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: payload(p.GetSize())}); err != nil {
			return err
		}
	}
	return status.Error(codes.DataLoss, "after the last message")
}

func (b grpcBackend) FullDuplexCall(stream grpc.BidiStreamingServer[grpc_testing.StreamingOutputCallRequest, grpc_testing.StreamingOutputCallResponse]) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			b.ended <- stream.Context().Err()
			return err
		}
		for _, p := range req.GetResponseParameters() {
			if err := stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: payload(p.GetSize())}); err != nil {
				return err
			}
		}
	}
}

func TestGRPC(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	backend := grpcBackend{ended: make(chan error, 1)}
	server := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(server, backend)
	ln := listenLoopback(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	n.mustPut("routes/grpc", routeJSON(map[string]any{
		"host": "grpc.r.test", "backend": map[string]any{"targets": []string{ln.Addr().String()}, "h2c": true}}))
	n.mustPut("routes/dead", routeJSON(map[string]any{
		"host": "dead.r.test", "backend": map[string]any{"targets": []string{loopback(n.port(0))}, "h2c": true}}))

	service := func(host string) grpc_testing.TestServiceClient {
		conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///%s:%d", host, n.HTTPS),
			grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(n.roots(), "")),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", toLoopback(addr))
			}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return grpc_testing.NewTestServiceClient(conn)
	}
	client := service("grpc.r.test")

	t.Run("unary", func(t *testing.T) {
		var header, trailer metadata.MD
		ctx := metadata.AppendToOutgoingContext(within(t), "x-sent", "1", "x-data-bin", "\x00\xff")
		resp, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: payload(100_000), ResponseSize: 1_000_000},
			grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		if got := len(resp.GetPayload().GetBody()); got != 1_000_000 {
			t.Errorf("a message of %d bytes, want 1000000", got)
		}
		if got := fmt.Sprintf("%q %q %q", header["x-header"], header["x-data-bin"], trailer["x-trailer"]); got != `["1"] ["\x00\xff"] ["late"]` {
			t.Errorf("metadata %s", got)
		}
	})
	t.Run("status", func(t *testing.T) {
		_, err := client.UnaryCall(within(t), &grpc_testing.SimpleRequest{
			ResponseStatus: &grpc_testing.EchoStatus{Code: int32(codes.ResourceExhausted), Message: "no GPU left, 100 % busy"}})
		if s := status.Convert(err); s.Code() != codes.ResourceExhausted || s.Message() != "no GPU left, 100 % busy" {
			t.Errorf("%v", err)
		}
		if _, err := client.EmptyCall(within(t), &grpc_testing.Empty{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%v, want Unimplemented", err)
		}
	})
	t.Run("server stream", func(t *testing.T) {
		sizes := []*grpc_testing.ResponseParameters{{Size: 1}, {Size: 0}, {Size: 300_000}}
		stream, err := client.StreamingOutputCall(within(t), &grpc_testing.StreamingOutputCallRequest{ResponseParameters: sizes})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range sizes {
			resp, err := stream.Recv()
			if got := len(resp.GetPayload().GetBody()); err != nil || got != int(p.GetSize()) {
				t.Fatalf("message %d: %d bytes, %v, want %d bytes", i, got, err, p.GetSize())
			}
		}
		if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
			t.Errorf("%v, want DataLoss after the last message", err)
		}
	})
	t.Run("both ways", func(t *testing.T) {
		stream, err := client.FullDuplexCall(within(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range int32(10) {
			req := &grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: i}}}
			if err := stream.Send(req); err != nil {
				t.Fatal(err)
			}
			resp, err := stream.Recv()
			if got := len(resp.GetPayload().GetBody()); err != nil || got != int(i) {
				t.Fatalf("message %d: %d bytes, %v", i, got, err)
			}
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("%v, want the end", err)
		}
	})
	t.Run("client leaves", func(t *testing.T) {
		ctx, leave := context.WithCancel(within(t))
		defer leave()
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 1}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		leave()
		if err := await(t, backend.ended, "the end of the stream at the backend"); err == nil {
			t.Error("the stream's context at the backend goes on")
		}
	})
	t.Run("no backend", func(t *testing.T) {
		_, err := service("dead.r.test").EmptyCall(within(t), &grpc_testing.Empty{})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%v, want Unavailable", err)
		}
	})
	n.accessRecord(map[string]any{
		"route": "grpc", "proto": "h2", "method": "POST", "path": "/grpc.testing.TestService/UnaryCall", "status": 200})
}
