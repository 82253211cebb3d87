// Encrypts and decrypts with the JDK alone: raw bytes in, raw bytes out. Run it: java Client.java

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Base64;
import java.util.regex.Pattern;

public class Client {
    /** What the service says instead of an answer. */
    static class Refused extends IOException {
        private static final Pattern CODE = Pattern.compile("\"code\":\"([a-z_]+)\"");
        final int status;
        final String code;

        Refused(int status, String problem) {
            super(problem);
            var found = CODE.matcher(problem);
            this.status = status;
            this.code = found.find() ? found.group(1) : "";
        }
    }

    private final HttpClient http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final String server;
    private final String chain;

    Client(String server, String chain) {
        this.server = server;
        this.chain = chain;
    }

    byte[] encrypt(byte[] plaintext, byte[] aad) throws IOException, InterruptedException {
        return call("/v1/encrypt", plaintext, aad, 3);
    }

    byte[] decrypt(byte[] envelope, byte[] aad) throws IOException, InterruptedException {
        return call("/v1/decrypt", envelope, aad, 3);
    }

    /** Makes a call; 429 and 503 say when it is worth another try. */
    private byte[] call(String path, byte[] body, byte[] aad, int tries) throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(server + path))
                .timeout(Duration.ofSeconds(15))
                .header("content-type", "application/octet-stream")
                .header("kms-proxy-chain", chain)
                .header("kms-proxy-aad", Base64.getEncoder().encodeToString(aad))
                .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                .build();
        var response = http.send(request, HttpResponse.BodyHandlers.ofByteArray());
        if (response.statusCode() == 200) {
            return response.body();
        }
        var wait = response.headers().firstValueAsLong("retry-after");
        if (wait.isPresent() && tries > 1) {
            Thread.sleep(Duration.ofSeconds(wait.getAsLong()).toMillis());
            return call(path, body, aad, tries - 1);
        }
        throw new Refused(response.statusCode(), new String(response.body(), StandardCharsets.UTF_8));
    }

    public static void main(String[] arguments) throws Exception {
        var server = System.getenv().getOrDefault("KMS_PROXY_SERVER", "http://127.0.0.1:8080");
        var client = new Client(server, "default");
        // The AAD binds the ciphertext to its place: moved to another row, it does not open.
        var secret = client.encrypt("hello".getBytes(StandardCharsets.UTF_8), "row 7".getBytes(StandardCharsets.UTF_8));
        var opened = client.decrypt(secret, "row 7".getBytes(StandardCharsets.UTF_8));
        System.out.println(new String(opened, StandardCharsets.UTF_8));
        try {
            client.decrypt(secret, "row 8".getBytes(StandardCharsets.UTF_8));
        } catch (Refused refused) {
            System.out.println("refused: " + refused.code);
        }
    }
}
