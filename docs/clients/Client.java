// Encrypts and decrypts with the JDK alone: raw bytes in, raw bytes out. Run it: java Client.java

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.InvalidKeySpecException;
import java.security.spec.PKCS8EncodedKeySpec;
import java.time.Duration;
import java.util.Base64;
import java.util.List;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    private static final String OCTETS = "application/octet-stream";
    private static final int TRIES = 5;

    /** What the service, or a proxy before it, says instead of an answer. */
    static class Refused extends IOException {
        private static final Pattern CODE = Pattern.compile("\"code\":\"([a-z_]+)\"");
        final int status;
        final String code;

        Refused(int status, String problem) {
            super(code(status, problem) + " (HTTP " + status + "): " + detail(problem));
            this.status = status;
            this.code = code(status, problem);
        }

        private static String code(int status, String problem) {
            var found = CODE.matcher(problem);
            return found.find() ? found.group(1) : "http_" + status;
        }

        private static String detail(String problem) {
            return CODE.matcher(problem).find() ? problem : "the answer is not from kms-proxy";
        }
    }

    /** Its connections stay open between calls. */
    private final HttpClient http;
    private final String server;
    private final String chain;
    private final String tokenFile;

    Client(String server, String chain, String tokenFile, SSLContext tls) {
        var http = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1);
        this.http = http.sslContext(tls).build();
        this.server = server;
        this.chain = chain;
        this.tokenFile = tokenFile;
    }

    byte[] encrypt(byte[] plaintext, byte[] aad) throws IOException, InterruptedException {
        return call("/v1/encrypt", plaintext, aad);
    }

    byte[] decrypt(byte[] envelope, byte[] aad) throws IOException, InterruptedException {
        return call("/v1/decrypt", envelope, aad);
    }

    /** Makes a call, and repeats it after a broken connection, 429 or 503: that is safe. */
    private byte[] call(String path, byte[] body, byte[] aad)
            throws IOException, InterruptedException {
        for (int left = TRIES - 1; ; left--) {
            HttpResponse<byte[]> response;
            try {
                response = send(path, body, aad);
            } catch (IOException broken) {
                if (left == 0) {
                    throw broken;
                }
                Thread.sleep(200);
                continue;
            }
            int status = response.statusCode();
            if ((status == 429 || status == 503) && left > 0) {
                var wait = response.headers().firstValue("retry-after").orElse("");
                Thread.sleep(wait.matches("[0-9]{1,4}") ? 1000 * Long.parseLong(wait) : 1000);
                continue;
            }
            // What is no envelope and no plaintext must not be taken for one.
            var type = response.headers().firstValue("content-type").orElse("");
            if (status == 200 && type.equals(OCTETS)) {
                return response.body();
            }
            throw new Refused(status, new String(response.body(), StandardCharsets.UTF_8));
        }
    }

    private HttpResponse<byte[]> send(String path, byte[] body, byte[] aad)
            throws IOException, InterruptedException {
        var request = HttpRequest.newBuilder(URI.create(server + path))
                .timeout(Duration.ofSeconds(15))
                .header("content-type", OCTETS)
                .header("kms-proxy-chain", chain)
                .header("kms-proxy-aad", Base64.getEncoder().encodeToString(aad))
                .POST(HttpRequest.BodyPublishers.ofByteArray(body));
        if (tokenFile != null) {
            // It is read for each call: tokens are replaced while programs run.
            var token = Files.readString(Path.of(tokenFile)).trim();
            request.header("authorization", "Bearer " + token);
        }
        return http.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
    }

    /** Trusts the authorities in `ca`, and shows the certificate in `cert`: PEM files, or null. */
    static SSLContext tls(String ca, String cert, String key)
            throws IOException, GeneralSecurityException {
        var context = SSLContext.getInstance("TLS");
        KeyManager[] keys = null;
        TrustManager[] trust = null;
        if (ca != null) {
            var store = emptyStore();
            for (var authority : certificates(ca)) {
                store.setCertificateEntry("ca " + store.size(), authority);
            }
            var algorithm = TrustManagerFactory.getDefaultAlgorithm();
            var factory = TrustManagerFactory.getInstance(algorithm);
            factory.init(store);
            trust = factory.getTrustManagers();
        }
        if (cert != null) {
            var store = emptyStore();
            var chain = certificates(cert).toArray(new Certificate[0]);
            store.setKeyEntry("client", privateKey(key), new char[0], chain);
            var factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            factory.init(store, new char[0]);
            keys = factory.getKeyManagers();
        }
        // What is null is the JDK's default.
        context.init(keys, trust, null);
        return context;
    }

    private static KeyStore emptyStore() throws IOException, GeneralSecurityException {
        var store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        return store;
    }

    private static List<Certificate> certificates(String path)
            throws IOException, GeneralSecurityException {
        try (var in = Files.newInputStream(Path.of(path))) {
            return List.copyOf(CertificateFactory.getInstance("X.509").generateCertificates(in));
        }
    }

    /** A key in PKCS#8, which starts with "BEGIN PRIVATE KEY". */
    private static PrivateKey privateKey(String path)
            throws IOException, GeneralSecurityException {
        var base64 = Files.readString(Path.of(path)).replaceAll("-----[A-Z ]+-----", "");
        var key = new PKCS8EncodedKeySpec(Base64.getMimeDecoder().decode(base64));
        try {
            return KeyFactory.getInstance("EC").generatePrivate(key);
        } catch (InvalidKeySpecException other) {
            return KeyFactory.getInstance("RSA").generatePrivate(key);
        }
    }

    public static void main(String[] arguments) throws Exception {
        var environment = System.getenv();
        var server = environment.getOrDefault("KMS_PROXY_SERVER", "http://127.0.0.1:8080");
        var tls = tls(environment.get("KMS_PROXY_CA"), environment.get("KMS_PROXY_CERT"),
                environment.get("KMS_PROXY_KEY"));
        var client = new Client(server, "default", environment.get("KMS_PROXY_TOKEN_FILE"), tls);
        var hello = "hello".getBytes(StandardCharsets.UTF_8);
        // The AAD binds the ciphertext to its place: moved to another row, it does not open.
        var aad = "row 7".getBytes(StandardCharsets.UTF_8);
        var secret = client.encrypt(hello, aad);
        var opened = client.decrypt(secret, aad);
        System.out.println(new String(opened, StandardCharsets.UTF_8));
        try {
            client.decrypt(secret, "row 8".getBytes(StandardCharsets.UTF_8));
        } catch (Refused refused) {
            System.out.println("refused: " + refused.code);
        }
    }
}
